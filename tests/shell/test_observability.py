"""What an administrator sees of the operator: metrics, probes, log lines."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import AsyncIterator, Iterator

import pytest
from aiohttp.test_utils import TestClient, TestServer
from prometheus_client.parser import text_string_to_metric_families

from sft_trainer.config import Progress
from sftjob_operator import logs
from sftjob_operator.api.v1alpha1 import API_VERSION, KIND
from sftjob_operator.cluster.base import Key, Ref
from sftjob_operator.health import application
from sftjob_operator.metrics import Metrics
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


async def test_progress_of_a_job_vanishes_with_the_job() -> None:
    known = {KEY: progress(7, loss=1.5)}
    metrics = Metrics()
    metrics.watch(WorkQueue[Key](), FakeCluster(), known)
    labels = {"namespace": "team", "sftjob": "bot"}
    assert value(metrics, "job_step", **labels) == 7
    assert value(metrics, "job_steps", **labels) == 100
    assert value(metrics, "job_loss", **labels) == 1.5
    assert value(metrics, "job_tokens_per_second", **labels) is None, "not known yet is not zero"
    known.clear()
    assert value(metrics, "job_step", **labels) is None


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


@pytest.fixture
def root_logger() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.mark.usefixtures("root_logger")
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


@pytest.mark.usefixtures("root_logger")
def test_an_exception_stays_on_one_line() -> None:
    stream = io.StringIO()
    logs.configure("json", "INFO", stream)
    try:
        raise RuntimeError("boom\nand more")
    except RuntimeError:
        logging.getLogger("x").exception("failed")
    assert stream.getvalue().count("\n") == 1
    assert "RuntimeError: boom" in json.loads(stream.getvalue())["exception"]


@pytest.mark.usefixtures("root_logger")
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
