"""A real training, with the operator's loop and the pods of a local cluster, scraped by a real Prometheus."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import tiny
from monitoring.prometheus import Prometheus, scraping
from sft_trainer.config import ENV_PEAK_FLOPS, METRICS_PORT
from sftjob_operator.api.v1alpha1 import API_VERSION, KIND, SFTJob
from sftjob_operator.cli.furnish import claim
from sftjob_operator.cli.session import hardware
from sftjob_operator.cluster.base import Key, Manifest
from sftjob_operator.cluster.local import LocalCluster
from sftjob_operator.health import application, serving
from sftjob_operator.metrics import Metrics
from sftjob_operator.quotas import Quota, Quotas
from sftjob_operator.reconcile import Reconciler
from sftjob_operator.settings import Settings
from sftjob_operator.worker import Workers
from sftjob_operator.workqueue import WorkQueue

KEY = Key("default", "bot")
SETTINGS = Settings(
    trainer_image="local",
    poll_seconds=1.0,
    status_seconds=1.0,
    workers=1,
    quotas=Quotas(namespaces={KEY.namespace: Quota(jobs=2)}),
)
SCRAPES = 6  # of everything, before it is enough
DEADLINE_SECONDS = 400
LATER = ("sft_trainer_eval_loss", "sft_trainer_checkpoint_seconds", "sftjob_operator_job_plan_memory_ratio")
FINISHED: Manifest = {
    "apiVersion": API_VERSION,
    "kind": KIND,
    "metadata": {"namespace": "default", "name": "earlier", "uid": "earlier"},
    "spec": {"workers": {"nodes": 1, "gpusPerNode": 8}},
    "status": {
        "phase": "Failed",
        "attempts": [{"number": 1, "state": "Failed", "reason": "NodeLost", "jobName": "earlier-1"}],
        "progress": {"step": 5, "totalSteps": 10, "loss": "1.5"},
    },
}
"""A job that had failed before; it is shown until somebody deletes it."""


class View:
    """The local cluster's, and that job."""

    def __init__(self, cluster: LocalCluster) -> None:
        self._cluster = cluster

    def keys(self) -> Sequence[Key]:
        return [*self._cluster.keys(), Key("default", "earlier")]

    def sftjob(self, key: Key) -> Manifest | None:
        return FINISHED if key.name == "earlier" else self._cluster.sftjob(key)

    def jobs(self, key: Key) -> Sequence[Manifest]:
        return self._cluster.jobs(key)


def manifest() -> Manifest:
    spec = tiny.spec(maxSteps=1_000_000)
    spec["data"]["eval"] = {"splitPercent": 20}
    spec |= {
        "workers": {"nodes": 2, "gpusPerNode": 0, "env": [{"name": ENV_PEAK_FLOPS, "value": "1e12"}]},
        "workspace": {"claimName": "w"},
        "checkpoint": {"periodSteps": 40, "retain": {"last": 1}},
        "evaluation": {"periodSteps": 30},
        "suspend": False,
    }
    return {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "metadata": dict(zip(("namespace", "name"), KEY, strict=True)),
        "spec": spec,
    }


@contextlib.contextmanager
def observed(folder: Path) -> Iterator[tuple[Prometheus, float, float]]:
    """Prometheus after the training, and from when to when there is data."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    targets = folder / "trainers.json"
    targets.write_text("[]")
    jobs = [
        {
            "job_name": "operator",
            "honor_labels": True,
            "static_configs": [{"targets": [f"127.0.0.1:{port}"], "labels": {"namespace": "sftjob-system"}}],
        },
        {"job_name": "trainers", "file_sd_configs": [{"files": [str(targets)], "refresh_interval": "1s"}]},
    ]
    with scraping(folder, jobs) as prometheus:
        start = time.time()
        asyncio.run(_train(folder, prometheus, targets, port))
        yield prometheus, start, time.time()


async def _train(folder: Path, prometheus: Prometheus, targets: Path, port: int) -> None:
    workspace = folder / "workspace"
    tiny.model(workspace / "models" / "tiny")
    tiny.chats(workspace / "datasets" / "chats.jsonl", 60)
    cluster, queue, metrics = LocalCluster(folder / "state"), WorkQueue[Key](), Metrics()
    metrics.watch_leader(lambda: True)
    for code in ("200", "200", "409"):  # a local cluster has no API server
        metrics.on_request("PATCH", code)
    reconciler = Reconciler(cluster, cluster, SETTINGS, hardware=hardware, watch_lag=metrics.on_watch_lag)
    workers = Workers(queue, reconciler.reconcile, 1, metrics.on_pass)
    metrics.watch(queue, View(cluster), reconciler.progress, reconciler.places.shares)
    cluster.watch(queue.add)
    job = manifest()
    await cluster.apply(claim(SFTJob.model_validate(job), KEY.namespace, workspace))
    await cluster.apply(job)
    pages = application(workers.stuck, lambda: None, metrics.exposition)
    async with serving(pages, "127.0.0.1", port):
        # Scraped while there is no attempt yet: the first one is a change then, however short preparation is.
        await _until(
            lambda: bool(prometheus.query(f'sftjob_operator_job_attempt{{sftjob="{KEY.name}"}}')), cluster
        )
        tasks = [asyncio.create_task(work) for work in (cluster.run(), workers.run())]
        try:
            await _until(lambda: _told(cluster, targets) and _has_all(prometheus), cluster)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            while cluster.has_processes():
                cluster.kill_pods()
                await asyncio.sleep(0.1)
            await cluster.close()


async def _until(done: Callable[[], bool], cluster: LocalCluster) -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not await asyncio.to_thread(done):
        job: dict[str, Any] = cluster.sftjob(KEY) or {}
        assert time.monotonic() < deadline, json.dumps(job.get("status"), indent=1)
        assert job.get("status", {}).get("phase") != "Failed", json.dumps(job["status"], indent=1)
        await asyncio.sleep(0.5)


def _told(cluster: LocalCluster, targets: Path) -> bool:
    """Tell Prometheus of the training pods, as a PodMonitor would."""
    pods = cluster.pods(KEY.namespace, {"sftjob.dev/role": "train"})
    addresses = [
        f"{pod['status']['podIP']}:{METRICS_PORT}" for pod in pods if pod.get("status", {}).get("podIP")
    ]
    text = json.dumps([{"targets": addresses, "labels": {"namespace": KEY.namespace}}])
    if targets.read_text() != text:
        unfinished = targets.with_suffix(".new")
        unfinished.write_text(text)
        unfinished.rename(targets)
    return len(addresses) == 2


def _has_all(prometheus: Prometheus) -> bool:
    """Whether what comes last in a training has been scraped often enough for rates."""
    return all(
        any(
            float(series["value"][1]) >= SCRAPES
            for series in prometheus.query(f"count_over_time({metric}[5m])")
        )
        for metric in LATER
    )
