"""The operator of the shell's tests: queue, workers and reconciler over a cluster in memory, and who plays the Job
controller there.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from typing import Any

from sftjob_operator.api.names import LABEL_JOB
from sftjob_operator.cluster.base import Key, Manifest, Ref, ref_of
from sftjob_operator.reconcile import Reconciler
from sftjob_operator.settings import Settings
from sftjob_operator.worker import Workers
from sftjob_operator.workqueue import WorkQueue
from shell.fake_cluster import START, FakeCluster
from worlds import prepared_outcome, progress, sftjob

KEY = Key("team", "bot")
SFTJOB = Ref("sftjob.dev/v1alpha1", "SFTJob", "team", "bot")
ATTEMPT = Ref("batch/v1", "Job", "team", "bot-1")


def claim(name: str = "ws") -> Manifest:
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"namespace": "team", "name": name},
    }


class Operator:
    """Queue, workers and reconciler over a FakeCluster whose changes are watched."""

    def __init__(self, **settings: Any) -> None:
        self.cluster = FakeCluster(self.now)
        self.queue: WorkQueue[Key] = WorkQueue()
        self.results: list[str] = []
        self.cluster.on_change = self._watched
        self.restart(**settings)

    def restart(self, **settings: Any) -> None:
        """A new process: nothing is remembered."""
        self.reconciler = Reconciler(
            self.cluster, self.cluster, Settings(**settings), now=self.now, call=self.queue.add
        )
        self.workers = Workers(
            self.queue, self.reconciler.reconcile, 2, lambda result, _: self.results.append(result)
        )

    def now(self) -> datetime:
        return START + timedelta(seconds=asyncio.get_running_loop().time())

    def _watched(self, manifest: Manifest) -> None:
        metadata = manifest["metadata"]
        if manifest["kind"] == "SFTJob":
            self.queue.add(Key(metadata["namespace"], metadata["name"]))
        elif manifest["kind"] == "Job":
            self.queue.add(Key(metadata["namespace"], metadata["labels"][LABEL_JOB]))

    # ------------------------------------------------------------------ what is seen

    @property
    def status(self) -> Manifest:
        return self.cluster.objects[SFTJOB].get("status", {})  # type: ignore[no-any-return]

    def says(self, kind: str) -> tuple[str, str]:
        found = next(item for item in self.status["conditions"] if item["type"] == kind)
        return found["status"], found["reason"]

    def message(self, kind: str) -> str:
        return str(next(item for item in self.status["conditions"] if item["type"] == kind)["message"])

    def jobs(self) -> list[str]:
        return [job["metadata"]["name"] for job in self.cluster.of_kind("Job")]

    # ------------------------------------------------------------------ what the Job controller does

    def prepare_job(self) -> Ref:
        return next(
            ref_of(job) for job in self.cluster.of_kind("Job") if "prepare" in job["metadata"]["name"]
        )

    def time(self) -> str:
        return self.now().strftime("%Y-%m-%dT%H:%M:%SZ")

    def runs(self, ref: Ref) -> None:
        pods = self.cluster.objects[ref]["spec"]["parallelism"]
        for index in range(pods):
            self.pod(ref, index, phase="Running")
        self.cluster.update(ref, status={"active": pods, "ready": pods, "startTime": self.time()})

    def pod(self, ref: Ref, index: int, **status: Any) -> None:
        job = self.cluster.objects[ref]
        labels = {
            **job["spec"]["template"]["metadata"]["labels"],
            "batch.kubernetes.io/job-completion-index": str(index),
        }
        self.cluster.put(
            {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {
                    "namespace": ref.namespace,
                    "name": f"{ref.name}-{index}",
                    "labels": labels,
                    "ownerReferences": [{"kind": "Job", "uid": job["metadata"]["uid"], "controller": True}],
                },
                "spec": {"nodeName": f"node-{index}", "containers": [{"name": "trainer", "image": "i"}]},
                "status": status,
            }
        )

    def ends(self, ref: Ref, code: int, message: str, condition: str = "") -> None:
        terminated = {"exitCode": code, "reason": "Completed" if code == 0 else "Error", "message": message}
        statuses = [{"name": "trainer", "image": "i", "state": {"terminated": terminated}}]
        self.pod(ref, 0, phase="Failed" if code else "Succeeded", containerStatuses=statuses)
        kind = "Failed" if code else "Complete"
        ended = {"type": kind, "status": "True", "message": condition, "lastTransitionTime": self.time()}
        self.cluster.update(ref, status={"conditions": [ended], "completionTime": self.time()})

    async def trains(self) -> None:
        """To the point where attempt 1 runs."""
        self.cluster.put(claim())
        self.cluster.put(sftjob())
        await asyncio.sleep(1)
        self.ends(self.prepare_job(), 0, prepared_outcome())
        await asyncio.sleep(1)
        self.runs(ATTEMPT)
        self.cluster.progress = progress().model_dump_json(by_alias=True).encode()
        await asyncio.sleep(1)


@contextlib.asynccontextmanager
async def operating(**settings: Any) -> AsyncIterator[Operator]:
    operator = Operator(**settings)
    task = asyncio.create_task(operator.workers.run())
    try:
        yield operator
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
