"""`make bench-scale`: one operator and a thousand running jobs on a real control plane. One JSON line per figure.

API server, etcd and the Job controller are those of `make cluster`; the pods are only said to run (pods.py), and one
server answers /progress for all of them (progress.py). Root, Linux and Go, as for the cluster.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

from bench.scale.figures import Figures, calls, say
from bench.scale.operator_seen import PORT, AuditLog, Process, scrape
from bench.scale.pods import SELECTOR, Kubelet
from bench.scale.progress import Rank0
from bench.scale.watching import watch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))

from devcluster import cluster, controlplane, paths  # noqa: E402 - after the path to it
from sftjob_operator.api.crd import crd  # noqa: E402
from sftjob_operator.cluster.base import Manifest  # noqa: E402
from sftjob_operator.cluster.connection import connect  # noqa: E402
from sftjob_operator.cluster.http import ApiClient  # noqa: E402
from worlds import prepared_outcome  # noqa: E402

NAMESPACES = 10
START_SECONDS = 900  # longer than any idle machine needs
SETTLE_SECONDS = 45.0  # until the last status write of the start is more than 30 s old


class Bench:
    """One run."""

    def __init__(self, api: ApiClient, figures: Figures) -> None:
        """Nothing is made yet."""
        self._api, self._figures, self._jobs = api, figures, figures.jobs
        self._prefix = f"scale-{int(time.time()):x}"
        self._rank0 = Rank0(figures.jobs)
        self._audit = AuditLog(controlplane.audit_log())

    async def run(self) -> None:
        """Everything, and tidy up."""
        await self._install()
        kubelet = asyncio.create_task(Kubelet(self._api, prepared_outcome(), self._rank0.address).run())
        try:
            async with self._rank0.serving(), self._operator() as operator:
                await self._start(operator)
                await asyncio.sleep(SETTLE_SECONDS)
                await watch(operator, self._audit, self._rank0, self._figures)
        finally:
            kubelet.cancel()
            for number in range(NAMESPACES):
                await self._api.json("DELETE", f"/api/v1/namespaces/{self._prefix}-{number}")

    async def _install(self) -> None:
        apply = "application/apply-patch+yaml"
        path = f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{crd()['metadata']['name']}"
        query = {"fieldManager": "bench", "force": "true"}
        await self._api.json("PATCH", path, query=query, body=crd(), content_type=apply)
        for number in range(NAMESPACES):
            namespace = f"{self._prefix}-{number}"
            await self._api.json("POST", "/api/v1/namespaces", body={"metadata": {"name": namespace}})
            path = f"/api/v1/namespaces/{namespace}/persistentvolumeclaims"
            await self._api.json("POST", path, body=_claim())

    @contextlib.asynccontextmanager
    async def _operator(self) -> AsyncIterator[Process]:
        environment = {
            **os.environ,
            "KUBECONFIG": str(paths.kubeconfig()),
            "PYTHONPATH": f"{ROOT}/operator:{ROOT}/trainer",
            "SFTJOB_OPERATOR_HTTP_HOST": "127.0.0.1",
            "SFTJOB_OPERATOR_HTTP_PORT": str(PORT),
        }
        script = Path(__file__).with_name("operator_process.py")
        folder = ROOT / ".sftjob" / "bench"
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "operator.log").open("w") as log:
            process = await asyncio.create_subprocess_exec(
                sys.executable, str(script), env=environment, stdout=log, stderr=log
            )
            try:
                yield Process(process.pid)
            finally:
                with contextlib.suppress(ProcessLookupError):
                    process.terminate()
                await process.wait()

    async def _start(self, operator: Process) -> None:
        """From no job to all of them training."""
        await asyncio.sleep(8)
        samples, _ = await scrape()
        say(figure="rss_mib", jobs=0, value=round(operator.rss_mib), files=operator.files)
        before, cpu, began = samples, operator.cpu_seconds, time.monotonic()
        slots = asyncio.Semaphore(8)

        async def create(number: int) -> None:
            path = f"/apis/sftjob.dev/v1alpha1/namespaces/{self._prefix}-{number % NAMESPACES}/sftjobs"
            async with slots:
                await self._api.json("POST", path, body=_sftjob(number))

        await asyncio.gather(*map(create, range(self._jobs)))
        created = time.monotonic() - began
        while True:
            samples, _ = await scrape()
            training = sum(
                1
                for labels, _ in samples.get("sftjob_operator_job_info", [])
                if labels["activity"] == "TrainingSteps"
            )
            if training == self._jobs:
                break
            if time.monotonic() - began > START_SECONDS:
                sys.exit(
                    f"{training} of {self._jobs} jobs train after {START_SECONDS} s: see .sftjob/bench/operator.log"
                )
            await asyncio.sleep(2)
        say(
            figure="start",
            jobs=self._jobs,
            created_seconds=round(created, 1),
            all_training_seconds=round(time.monotonic() - began, 1),
            cpu_milliseconds_per_job=round(1000 * (operator.cpu_seconds - cpu) / self._jobs, 1),
            api_calls_per_job=calls(before, samples, self._jobs),
        )


def _sftjob(number: int) -> Manifest:
    spec = {
        "model": {"path": "models/none"},
        "data": {"train": [{"path": "none.jsonl"}]},
        "training": {"maxSteps": 1_000_000},
        "workers": {"nodes": 1, "gpusPerNode": 0, "podTemplate": {"spec": {"nodeSelector": SELECTOR}}},
        "prepare": {"podTemplate": {"spec": {"nodeSelector": SELECTOR}}},
        "workspace": {"claimName": "bench"},
    }
    metadata = {"name": f"job-{number:04d}"}
    return {"apiVersion": "sftjob.dev/v1alpha1", "kind": "SFTJob", "metadata": metadata, "spec": spec}


def _claim() -> Manifest:
    resources = {"requests": {"storage": "1Gi"}}
    spec = {"accessModes": ["ReadWriteMany"], "storageClassName": "none", "resources": resources}
    return {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "bench"}, "spec": spec}


async def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=180.0, help="how long the running jobs are watched")
    arguments = parser.parse_args()
    kubeconfig = cluster.up()
    api = ApiClient(await connect(str(kubeconfig)))
    figures = Figures(arguments.jobs, arguments.seconds)
    try:
        await Bench(api, figures).run()
    finally:
        await api.close()
    for figure in figures.failures:
        print(f"does not hold: {figure}", file=sys.stderr)
    return 1 if figures.failures else 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
