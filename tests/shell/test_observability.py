"""What an administrator sees of the operator: metrics, probes, log lines."""

from __future__ import annotations

import io
import json
import logging
import re
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from aiohttp.test_utils import TestClient, TestServer
from prometheus_client.parser import text_string_to_metric_families

from sft_trainer.config import Progress
from sftjob_operator import jobseries, logs
from sftjob_operator.api.status import Status
from sftjob_operator.api.v1alpha1 import API_VERSION, KIND
from sftjob_operator.cluster.base import Key, Ref
from sftjob_operator.freshness import Freshness
from sftjob_operator.goodput import charged
from sftjob_operator.health import application
from sftjob_operator.metrics import Metrics
from sftjob_operator.reports import rfc3339
from sftjob_operator.step import as_json
from sftjob_operator.worker import subject
from sftjob_operator.workqueue import WorkQueue
from shell.fake_cluster import FakeCluster

KEY = Key("team", "bot")


def progress(step: int, loss: float | None = None) -> Progress:
    return Progress(
        attempt=1,
        run_id="r",
        state="Training",
        step=step,
        total_steps=100,
        loss=loss,
        time="2026-01-01T00:00:00Z",
    )


def samples(metrics: Metrics) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(metrics.exposition().decode())
        for sample in family.samples
    }


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return samples(metrics).get((f"sftjob_operator_{name}", tuple(sorted(labels.items()))))


async def test_passes_and_requests_are_counted() -> None:
    metrics = Metrics()
    metrics.on_pass("ok", 0.02)
    metrics.on_pass("retry", 0.5)
    metrics.on_request("PATCH", "200")
    assert value(metrics, "reconcile_total", result="ok") == 1
    assert value(metrics, "reconcile_total", result="retry") == 1
    assert value(metrics, "reconcile_total", result="error") == 0, "an alert needs the zero"
    assert value(metrics, "reconcile_seconds_count") == 2
    assert value(metrics, "reconcile_seconds_bucket", le="0.025") == 1
    assert value(metrics, "api_requests_total", verb="PATCH", code="200") == 1


async def test_queue_jobs_and_leadership_are_read_at_every_scrape() -> None:
    cluster, queue, metrics = FakeCluster(), WorkQueue[Key](), Metrics()
    metrics.watch(queue, cluster, {})
    queue.add(KEY)
    for name, phase in (("a", "Running"), ("b", "Running"), ("c", None)):
        body = {"apiVersion": API_VERSION, "kind": KIND, "metadata": {"namespace": "team", "name": name}}
        cluster.put(body | ({"status": {"phase": phase}} if phase else {}))
    assert value(metrics, "queue_depth") == 1
    assert value(metrics, "jobs", phase="Running") == 2
    assert value(metrics, "jobs", phase="Pending") == 1, "one that nobody has looked at yet"
    assert value(metrics, "leader") == 0
    metrics.watch_leader(lambda: True)
    del cluster.objects[Ref(API_VERSION, KIND, "team", "a")]
    assert value(metrics, "leader") == 1
    assert value(metrics, "jobs", phase="Running") == 1


def sftjob(name: str = "bot", **status: Any) -> dict[str, Any]:
    return {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "metadata": {"namespace": "team", "name": name, "uid": f"uid-{name}"},
        "spec": {"workers": {"nodes": 2, "gpusPerNode": 8}},
        "status": status,
    }


def conditions(running: str = "True", reason: str = "TrainingSteps", true: str = "") -> list[dict[str, str]]:
    return [
        {
            "type": kind,
            "status": "True" if kind == true or (kind == "Running" and running == "True") else "False",
            "reason": reason if kind == "Running" else "Because",
            "message": "",
            "lastTransitionTime": "2026-01-01T00:00:00Z",
        }
        for kind in ("Running", "Suspended", "Complete", "Failed")
    ]


def shown(known: dict[Key, Progress], *bodies: dict[str, Any]) -> tuple[Metrics, FakeCluster]:
    metrics, cluster = Metrics(), FakeCluster()
    for body in bodies:
        cluster.put(body)
    metrics.watch(WorkQueue[Key](), cluster, known)
    return metrics, cluster


LABELS = {"namespace": "team", "sftjob": "bot"}


async def test_progress_of_a_job_vanishes_with_the_job() -> None:
    metrics, cluster = shown({KEY: progress(7, loss=1.5)}, sftjob(phase="Running"))
    assert value(metrics, "job_step", **LABELS) == 7
    assert value(metrics, "job_steps", **LABELS) == 100
    assert value(metrics, "job_loss", **LABELS) == 1.5
    assert value(metrics, "job_tokens_per_second", **LABELS) is None, "not known yet is not zero"
    assert value(metrics, "job_info", phase="Running", activity="", **LABELS) == 1
    del cluster.objects[Ref(API_VERSION, KIND, "team", "bot")]
    assert not [name for name, labels in samples(metrics) if ("sftjob", "bot") in labels]


async def test_a_finished_job_keeps_its_last_values_as_long_as_it_is_there() -> None:
    told = {"step": 100, "totalSteps": 100, "loss": "0.4200", "evalLoss": "0.5100", "tokensPerSecond": 41250}
    finished = sftjob(
        phase="Succeeded",
        nodes=2,
        progress=told,
        conditions=conditions("False", "Finished", true="Complete"),
        completionTime="2026-01-01T01:00:00Z",
        goodput={"productiveSeconds": 3000, "restartSeconds": 60, "accountedTime": "2026-01-01T01:00:00Z"},
    )
    metrics, _ = shown({}, finished)
    assert value(metrics, "job_loss", **LABELS) == 0.42
    assert value(metrics, "job_eval_loss", **LABELS) == 0.51
    assert value(metrics, "job_tokens_per_second", **LABELS) == 41250
    assert value(metrics, "job_seconds_total", kind="productive", **LABELS) == 3000, "its time is over"
    assert value(metrics, "job_completion_timestamp_seconds", **LABELS) == 1767229200
    assert value(metrics, "job_gpus", **LABELS) == 0
    assert value(metrics, "jobs", phase="Succeeded") == 1
    assert value(metrics, "jobs", phase="Failed") == 0, "an alert needs the zero"


async def test_time_that_is_not_in_the_status_yet_goes_to_what_the_job_does_now() -> None:
    goodput = {"productiveSeconds": 100, "queuedSeconds": 7, "accountedTime": "2026-01-01T00:00:00Z"}
    metrics, _ = shown({}, sftjob(phase="Running", nodes=2, conditions=conditions(), goodput=goodput))
    assert (value(metrics, "job_seconds_total", kind="productive", **LABELS) or 0) > 10**6
    assert value(metrics, "job_seconds_total", kind="queued", **LABELS) == 7
    assert value(metrics, "job_gpus", **LABELS) == 16
    assert value(metrics, "job_info", phase="Running", activity="TrainingSteps", **LABELS) == 1


async def test_a_node_has_one_gpu_where_the_job_says_nothing_of_them() -> None:
    body = {**sftjob(phase="Suspending", nodes=4), "spec": {"workers": {"nodes": 4}}}
    metrics, _ = shown({}, body)
    assert value(metrics, "job_gpus", **LABELS) == 4, "and they are held until the pods have stopped"


@pytest.mark.parametrize("late", [0.0, 0.9, 4.0, 9.0], ids=str)
def test_seconds_never_go_back_when_they_are_written_down_and_something_else_begins(late: float) -> None:
    start = datetime(2026, 1, 1, tzinfo=UTC)
    goodput = {"productiveSeconds": 100, "accountedTime": rfc3339(start)}
    training = sftjob(phase="Running", conditions=conditions(), goodput=goodput)
    written = start + timedelta(seconds=29.9)  # when the pass looked at its clock
    status = Status.model_validate(training["status"])
    after = status.model_copy(update={"goodput": charged(status, written)})
    saving = sftjob(phase="Running") | {"status": as_json(after)}
    saving["status"]["conditions"] = conditions(reason="SavingCheckpoint")

    def productive(body: dict[str, Any], now: datetime) -> float:
        (series,) = [one for one in jobseries.JOB_SERIES if one.name == "seconds"]
        return dict(jobseries.samples(series, jobseries.of(body, None, now)))["productive",]

    seen = written + timedelta(seconds=late)  # when the watch showed it
    assert productive(training, seen) <= productive(saving, seen) == 129


async def test_failures_are_counted_by_class_and_no_pod_invents_a_class() -> None:
    attempts = [
        {"number": 1, "state": "Failed", "reason": "NodeLost", "jobName": "bot-1"},
        {"number": 2, "state": "Failed", "reason": "Hacked_by_me", "exitCode": 71, "jobName": "bot-2"},
        {"number": 3, "state": "Failed", "reason": "InvalidRow", "exitCode": 71, "jobName": "bot-3"},
        {"number": 4, "state": "Running", "jobName": "bot-4"},
    ]
    metrics, _ = shown({}, sftjob(phase="Running", attempts=attempts, restarts=2))
    found = {
        dict(labels)["class"]: number
        for (name, labels), number in samples(metrics).items()
        if name == "sftjob_operator_job_failed_attempts"
    }
    assert found == {"NodeLost": 1, "UserError": 2}
    assert value(metrics, "job_attempt", **LABELS) == 4
    assert value(metrics, "job_restarts", **LABELS) == 2


async def test_the_plans_estimate_is_compared_with_what_was_needed() -> None:
    plan = {
        "zeroStage": 2,
        "microBatchSize": 1,
        "gradientAccumulationSteps": 1,
        "worldSize": 2,
        "activationCheckpointing": "None",
        "tokensPerStep": 1,
        "hash": "a",
        "memory": {"perGPU": "1Gi"},
    }
    heard = progress(7).model_copy(update={"peak_memory_bytes": 2**29})
    metrics, _ = shown({KEY: heard}, sftjob(phase="Running", plan=plan))
    assert value(metrics, "job_plan_memory_bytes", **LABELS) == 2**30
    assert value(metrics, "job_plan_memory_ratio", **LABELS) == 0.5
    assert value(metrics, "job_reported_timestamp_seconds", **LABELS) == 1767225600


async def test_a_status_that_is_nonsense_takes_nothing_but_itself_away() -> None:
    metrics, _ = shown({}, sftjob("bad", attempts="seven", phase=3), sftjob(phase="Running"))
    assert value(metrics, "jobs", phase="Running") == 1
    assert value(metrics, "jobs", phase="Pending") == 1


async def test_the_lag_of_the_watch_is_measured_with_our_own_writes() -> None:
    metrics = Metrics()
    fresh = Freshness(metrics.on_watch_lag)
    written = {"kind": "SFTJob", "metadata": {"uid": "u", "resourceVersion": "5"}}
    fresh.wrote(KEY, written)
    assert fresh.wait(KEY, []) > 0
    assert value(metrics, "watch_lag_seconds_count") == 0
    assert fresh.wait(KEY, [written]) == 0
    assert value(metrics, "watch_lag_seconds_count") == 1


async def test_the_documentation_lists_every_metric_and_no_other() -> None:
    metrics, _ = shown({})
    document = (Path(__file__).resolve().parents[2] / "docs" / "metrics.md").read_text()
    listed = re.findall(r"^\| `(sftjob_operator_\w+)` \|", document, re.MULTILINE)
    families = [family for family in metrics.registry.collect() if not family.name.startswith("process_")]
    assert sorted(listed) == sorted(
        family.name + "_total" * (family.type == "counter") for family in families
    )


# ------------------------------------------------------------------ probes


@pytest.fixture
async def probed() -> AsyncIterator[tuple[TestClient, list[str]]]:  # type: ignore[type-arg]
    trouble: list[str] = []
    app = application(lambda: trouble[0] if trouble else None, lambda: None, Metrics().exposition)
    async with TestClient(TestServer(app)) as client:
        yield client, trouble


async def test_healthz_says_what_is_wrong(probed: tuple[TestClient, list[str]]) -> None:  # type: ignore[type-arg]
    client, trouble = probed
    assert (await client.get("/healthz")).status == 200
    trouble.append("worker 3 has not moved for 200 s")
    answer = await client.get("/healthz")
    assert (answer.status, await answer.text()) == (503, "worker 3 has not moved for 200 s")
    assert (await client.get("/readyz")).status == 200


async def test_metrics_are_served_in_the_text_format(probed: tuple[TestClient, list[str]]) -> None:  # type: ignore[type-arg]
    answer = await probed[0].get("/metrics")
    assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    assert "sftjob_operator_reconcile_seconds_bucket" in await answer.text()


# ------------------------------------------------------------------ logs


def test_a_json_line_names_the_sftjob() -> None:
    stream = io.StringIO()
    logs.configure("json", "INFO", stream)
    logging.getLogger("sftjob_operator.reconcile").info(
        "%s: %s", "ImagePull", "no such image", extra=subject(KEY, "u1")
    )
    line = json.loads(stream.getvalue())
    assert line.pop("time").endswith("+00:00")
    assert line == {
        "level": "INFO",
        "logger": "sftjob_operator.reconcile",
        "message": "ImagePull: no such image",
        "namespace": "team",
        "name": "bot",
        "uid": "u1",
    }


def test_an_exception_stays_on_one_line() -> None:
    stream = io.StringIO()
    logs.configure("json", "INFO", stream)
    try:
        raise RuntimeError("boom\nand more")
    except RuntimeError:
        logging.getLogger("x").exception("failed")
    assert stream.getvalue().count("\n") == 1
    assert "RuntimeError: boom" in json.loads(stream.getvalue())["exception"]


def test_a_plain_line_is_for_people() -> None:
    stream = io.StringIO()
    logs.configure("plain", "debug", stream)
    logging.getLogger("x").warning("slow", extra=subject(KEY))
    assert stream.getvalue().rstrip().endswith("WARNING [team/bot] slow")


@pytest.mark.parametrize(
    ("log_format", "level", "variable"),
    [("xml", "INFO", "SFTJOB_OPERATOR_LOG_FORMAT"), ("json", "LOUD", "SFTJOB_OPERATOR_LOG_LEVEL")],
)
def test_a_wrong_log_setting_is_named(log_format: str, level: str, variable: str) -> None:
    with pytest.raises(ValueError, match=variable):
        logs.configure(log_format, level)
