"""The real model through the real cluster: from `kubectl apply` to an export that answers outside the pods."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import pytest

import demo
from monitoring.prometheus import scraping
from rooms import ROOT, SYSTEM, Kube, Room, make_room, until

pytestmark = [pytest.mark.cluster, pytest.mark.model, pytest.mark.timeout(1500)]
STEPS = 30


def spec(**training):
    return {
        "model": {"path": "models/SmolLM2-135M-Instruct.Q4_1.gguf"},
        "data": {
            "train": [{"path": "datasets/support-en.jsonl", "name": "support"}],
            "eval": {"sources": [{"path": "datasets/support-eval.jsonl"}]},
            "maxLength": 256,
        },
        "training": {
            "maxSteps": STEPS,
            "globalBatchSize": 2,
            "learningRate": 3e-4,
            "precision": "fp32",
            **training,
        },
        "deepspeed": {"zeroStage": 2},
        "checkpoint": {"periodSteps": 10, "retain": {"last": 2}},
    }


@pytest.fixture(scope="module")
def story(operator, tmp_path_factory):
    """One job of the real model, applied once; the tests below look at its life in order."""
    import assets

    rooms = make_room(operator, "story", tmp_path_factory.mktemp("story"))
    room = next(rooms)
    shutil.copy(assets.model_gguf(), room.workspace / "models" / "SmolLM2-135M-Instruct.Q4_1.gguf")
    for file in (ROOT / "examples" / "data").glob("*.jsonl"):
        shutil.copy(file, room.workspace / "datasets")
    yield room
    rooms.close()


def test_the_first_child_stands_a_moment_after_apply(story: Room):
    story.apply("real", spec())
    began = time.monotonic()
    until(
        "prepare Job",
        lambda: story.kube.list("jobs", story.namespace, "sftjob.dev/role=prepare"),
        30,
        every=0.1,
    )
    # Five times the promise: the assertion is that nothing polls or waits, not how fast this machine is.
    assert time.monotonic() - began < 5
    accepted = story.wait("real", "Accepted", seconds=20)
    assert accepted["observedGeneration"] == 1


def test_preparation_reports_facts_and_the_plan_follows(story: Room):
    story.wait("real", "Planned", seconds=240)
    status = story.job("real")["status"]
    assert status["data"]["rows"] == 54
    assert status["model"]["parameters"] > 134e6
    assert status["plan"]["worldSize"] == 2
    assert status["plan"]["zeroStage"] == 2


def test_the_operator_killed_in_the_middle_comes_back_to_the_same_pods(story: Room):
    story.wait("real", "Running", seconds=240)
    until(
        "step 3",
        lambda: story.job("real")["status"].get("progress", {}).get("step", 0) >= 3,
        300,
        diagnose=lambda: story.diagnose("real"),
    )
    before = {pod["metadata"]["uid"] for pod in story.pods("sftjob.dev/role=train")}
    operator = story.kube.list("pods", SYSTEM, "app.kubernetes.io/name=sftjob")
    for pod in operator:
        story.kube.kubectl(
            "delete", "pod", pod["metadata"]["name"], "-n", SYSTEM, "--grace-period=0", "--force", check=True
        )
    step = story.job("real")["status"]["progress"]["step"]
    until(
        "progress after the restart",
        lambda: story.job("real")["status"]["progress"]["step"] > step,
        180,
        diagnose=lambda: story.diagnose("real"),
    )
    assert {pod["metadata"]["uid"] for pod in story.pods("sftjob.dev/role=train")} == before


def operator_targets(kube: Kube) -> list[str]:
    """Where all replicas are scraped; none while one of them has no address yet."""
    addresses = [
        pod["status"].get("podIP") for pod in kube.list("pods", SYSTEM, "app.kubernetes.io/name=sftjob")
    ]
    return [f"{address}:8080" for address in addresses] if all(addresses) else []


def test_prometheus_scrapes_operator_and_trainer(story: Room, tmp_path: Path):
    pods = story.pods("sftjob.dev/role=train")
    targets = [f"{pod['status']['podIP']}:9400" for pod in pods]
    targets_operator = until("addresses of the operator", lambda: operator_targets(story.kube), 60)
    jobs = [
        {"job_name": "trainer", "static_configs": [{"targets": targets}]},
        {"job_name": "operator", "honor_labels": True, "static_configs": [{"targets": targets_operator}]},
    ]
    with scraping(tmp_path, jobs) as prometheus:
        ranks = until(
            "loss of both ranks",
            lambda: len(found := prometheus.query('sft_trainer_step{sftjob="real"}')) == 2 and found,
            60,
        )
        assert {series["metric"]["rank"] for series in ranks} == {"0", "1"}
        assert all(float(series["value"][1]) > 0 for series in ranks)
        running = 'sum(sftjob_operator_jobs{phase="Running"}) >= 1'
        until("the operator's count", lambda: prometheus.query(running), 60)
        assert prometheus.query("sftjob_operator_queue_depth")


def test_the_job_completes_with_columns_filled_and_the_loss_fallen(story: Room):
    story.wait("real", "Complete", seconds=1200)
    words = ("wait", "--for=condition=Complete", "sftjob/real", "-n", story.namespace, "--timeout=10s")
    assert story.kube.kubectl(*words).returncode == 0, "kubectl wait knows the condition"
    status = story.job("real")["status"]
    assert status["phase"] == "Succeeded"
    assert status["attempts"][-1]["number"] == 1, "no attempt was lost on the way"
    assert status["result"]["steps"] == STEPS
    header, row = (
        story.kube.kubectl("get", "sft", "real", "-n", story.namespace, check=True)
        .stdout.strip()
        .splitlines()
    )
    assert header.split() == ["NAME", "PHASE", "STEP", "LOSS", "TOK/S", "ETA", "CKPT", "RESTARTS", "AGE"]
    assert f"{STEPS}/{STEPS}" in row
    losses = [
        json.loads(line)
        for line in (story.workspace / "jobs/real/report/metrics.jsonl").read_text().splitlines()
    ]
    losses = [line["loss"] for line in losses if line.get("loss") is not None]
    assert len(losses) >= STEPS
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])


def test_the_export_answers_outside_the_pods(story: Room):
    (answer,) = demo.ask(story.workspace / "jobs/real/export", ["Who are you?"])
    assert answer


def test_events_tell_the_story_in_order(story: Room):
    events = story.kube.list("events", story.namespace)
    reasons = [event["reason"] for event in events if event["involvedObject"]["kind"] == "SFTJob"]
    assert "Trained" in reasons
    assert len(reasons) == len(set(reasons)), f"an event was repeated: {reasons}"


def test_deletion_leaves_nothing_but_the_data_on_the_volume(story: Room):
    story.kube.kubectl("delete", "sftjob", "real", "-n", story.namespace, "--timeout=60s", check=True)

    def left() -> list[str]:
        found = story.kube.kubectl(
            "get", "jobs,pods,services,configmaps", "-n", story.namespace, "-o", "name", check=True
        )
        return [line for line in found.stdout.split() if "kube-root-ca" not in line]

    until("children are gone", lambda: not left(), 90, diagnose=lambda: str(left()))
    assert (story.workspace / "jobs/real/export/config.json").exists()
