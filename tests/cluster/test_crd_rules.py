"""What a real API server makes of the definition: its rules, columns, scale, and the numbers people write."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from api import corpus
from rooms import resting_operator

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("crd")]
EXAMPLES = sorted((Path(__file__).resolve().parents[2] / "examples").glob("*.yaml"))
NAMESPACE = "crd-rules"


@pytest.fixture(scope="module", autouse=True)
def namespace(kube: Any, crd: None) -> Iterator[None]:
    """A namespace where only the test writes: an operator of an earlier module rests meanwhile."""
    with resting_operator(kube):
        kube.kubectl("create", "namespace", NAMESPACE)
        yield
        kube.kubectl("delete", "namespace", NAMESPACE, "--wait=false")


@pytest.fixture
def job(kube: Any) -> Iterator[corpus.Manifest]:
    """A stored SFTJob."""
    manifest = {
        "apiVersion": "sftjob.dev/v1alpha1",
        "kind": "SFTJob",
        "metadata": {"name": "good"},
        "spec": {
            "suspend": True,
            "model": {"path": "models/base"},
            "data": {"train": [{"path": "datasets/a.jsonl"}]},
            "workers": {"nodes": 2},
            "workspace": {"claimName": "workspace"},
        },
    }
    done = kube.kubectl("create", "-n", NAMESPACE, "-f", "-", stdin=json.dumps(manifest))
    assert done.returncode == 0, done.stderr
    yield manifest
    kube.kubectl("delete", "sftjob", "good", "-n", NAMESPACE)


def write_status(kube: Any, name: str, status: dict[str, Any]) -> None:
    words = ("--subresource=status", "--type=merge", "-p", json.dumps({"status": status}))
    done = kube.kubectl("patch", "sftjob", name, "-n", NAMESPACE, *words)
    assert done.returncode == 0, done.stderr


def read(kube: Any, name: str) -> dict[str, Any]:
    return json.loads(kube.kubectl("get", "sftjob", name, "-n", NAMESPACE, "-o", "json").stdout)


def test_the_definition_is_served_without_a_reservation(kube: Any):
    found = json.loads(kube.kubectl("get", "crd", "sftjobs.sftjob.dev", "-o", "json").stdout)
    conditions = {one["type"]: one["status"] for one in found["status"]["conditions"]}
    assert conditions["Established"] == "True"
    assert conditions["NamesAccepted"] == "True"
    assert "NonStructuralSchema" not in conditions


@pytest.mark.parametrize(
    "case", [case for case in corpus.cases() if case.stored is None], ids=lambda case: case.name
)
def test_a_bad_sftjob_is_refused_with_the_words_of_the_corpus(kube: Any, case: corpus.Case):
    done = kube.kubectl("create", "-n", NAMESPACE, "-f", "-", stdin=json.dumps(case.job))
    assert done.returncode != 0
    assert case.message in done.stderr


@pytest.mark.parametrize("case", [case for case in corpus.cases() if case.stored], ids=lambda case: case.name)
def test_a_bad_change_is_refused_with_the_words_of_the_corpus(kube: Any, case: corpus.Case):
    assert case.stored is not None
    name = case.stored["metadata"]["name"]
    kube.kubectl("create", "-n", NAMESPACE, "-f", "-", stdin=json.dumps(case.stored))
    try:
        write_status(kube, name, case.stored["status"])
        # replace, and not apply: apply merges, and takes no field away that `create` has written
        done = kube.kubectl("replace", "-n", NAMESPACE, "-f", "-", stdin=json.dumps(case.job))
        assert done.returncode != 0
        assert case.message in done.stderr
    finally:
        kube.kubectl("delete", "sftjob", name, "-n", NAMESPACE)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_is_accepted(kube: Any, path: Path):
    done = kube.kubectl("create", "-n", NAMESPACE, "--dry-run=server", "--validate=strict", "-f", str(path))
    assert done.returncode == 0, done.stderr


def test_before_the_start_everything_may_change(kube: Any, job: corpus.Manifest):
    change = {
        "spec": {"model": {"path": "models/other"}, "training": {"seed": 7}, "deepspeed": {"zeroStage": 2}}
    }
    done = kube.kubectl("patch", "sftjob", "good", "-n", NAMESPACE, "--type=merge", "-p", json.dumps(change))
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "change",
    [
        {"suspend": False},
        {"failurePolicy": {"maxRestarts": 9}},
        {"workers": {"image": "another:1"}},
        {"checkpoint": {"periodSteps": 5, "retain": {"last": 2}}},
    ],
    ids=lambda change: next(iter(change)),
)
def test_after_the_start_what_is_mutable_still_is(kube: Any, job: corpus.Manifest, change: dict[str, Any]):
    write_status(kube, "good", {"startTime": "2026-01-01T00:00:00Z"})
    words = ("--type=merge", "--dry-run=server", "-p", json.dumps({"spec": change}))
    done = kube.kubectl("patch", "sftjob", "good", "-n", NAMESPACE, *words)
    assert done.returncode == 0, done.stderr


def test_kubectl_scale_changes_the_number_of_nodes(kube: Any, job: corpus.Manifest):
    done = kube.kubectl("scale", "sftjob", "good", "-n", NAMESPACE, "--replicas=3")
    assert done.returncode == 0, done.stderr
    assert read(kube, "good")["spec"]["workers"]["nodes"] == 3


def test_two_e_minus_five_is_a_number_and_stays_one(kube: Any, job: corpus.Manifest):
    text = json.dumps(job | {"metadata": {"name": "number"}}).replace(
        '"spec": {', '"spec": {"training": {"learningRate": 2e-5}, '
    )
    done = kube.kubectl("create", "-n", NAMESPACE, "--dry-run=server", "-o", "json", "-f", "-", stdin=text)
    assert json.loads(done.stdout)["spec"]["training"]["learningRate"] == 2e-5


def test_kubectl_refuses_a_field_that_does_not_exist(kube: Any, job: corpus.Manifest):
    misspelled = job | {"metadata": {"name": "misspelled"}, "spec": job["spec"] | {"worker": {}}}
    done = kube.kubectl("create", "-n", NAMESPACE, "-f", "-", stdin=json.dumps(misspelled))
    assert done.returncode != 0
    assert 'unknown field "spec.worker"' in done.stderr


def test_the_columns_say_how_it_goes(kube: Any, job: corpus.Manifest):
    running = {
        "type": "Running",
        "status": "True",
        "reason": "TrainingSteps",
        "lastTransitionTime": "2026-01-01T00:00:00Z",
    }
    progress = {"display": "120/480", "loss": "1.8342", "tokensPerSecond": 41250, "eta": "1h52m"}
    progress["mfuPercent"] = 41
    plan = {
        "display": "ZeRO-3+offload",
        "zeroStage": 3,
        "microBatchSize": 2,
        "gradientAccumulationSteps": 4,
        "activationCheckpointing": "None",
    }
    plan |= {"worldSize": 16, "tokensPerStep": 1, "memory": {"perGPU": "61Gi"}, "hash": "5f2c9a"}
    status = {
        "phase": "Running",
        "nodes": 2,
        "progress": progress,
        "plan": plan,
        "goodput": {"percent": 93, "accountedTime": "2026-01-01T00:00:00Z"},
        "lastVerifiedStep": 110,
        "restarts": 1,
    }
    write_status(kube, "good", status | {"conditions": [running]})
    header, row = kube.kubectl("get", "sft", "good", "-n", NAMESPACE, "-o", "wide").stdout.splitlines()
    assert header.split() == [
        "NAME", "PHASE", "STEP", "LOSS", "TOK/S", "ETA", "CKPT", "RESTARTS", "AGE", "REASON", "PLAN", "NODES",
        "GOODPUT%", "MFU%",
    ]  # fmt: skip
    assert row.split()[:8] == ["good", "Running", "120/480", "1.8342", "41250", "1h52m", "110", "1"]
    assert row.split()[9:] == ["TrainingSteps", "ZeRO-3+offload", "2", "93", "41"]


def test_explain_shows_the_descriptions(kube: Any):
    done = kube.kubectl("explain", "sftjob.spec.deepspeed.zeroStage")
    assert "What is partitioned" in done.stdout
