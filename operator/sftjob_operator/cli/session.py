"""`sftjob run`: the operator's own reconcile loop over a LocalCluster, until one job has come to its end.

Nothing of the operator is different here but the cluster: the same Reconciler, the same queue. Ctrl-C is a user's
suspension, so the ranks save a checkpoint and a second run goes on; the second Ctrl-C ends everything at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Callable
from datetime import UTC, datetime

from sftjob_operator.api.names import ANNOTATION_SUSPENDED_BY, LABEL_JOB
from sftjob_operator.api.objects import condition, is_finished, is_true
from sftjob_operator.api.v1alpha1 import API_VERSION, KIND, SFTJob
from sftjob_operator.cli.errors import FAILED, INTERRUPTED, OK, USAGE
from sftjob_operator.cluster.base import Key, Manifest, NotFound, Ref, ref_of
from sftjob_operator.cluster.local import LocalCluster, node
from sftjob_operator.planning.hardware import BF16_MAJOR, Hardware
from sftjob_operator.reconcile import Reconciler
from sftjob_operator.settings import Settings
from sftjob_operator.worker import Workers
from sftjob_operator.workqueue import WorkQueue

SETTINGS = Settings(
    trainer_image="local",
    pod_security="Privileged",
    poll_seconds=1.0,
    status_seconds=0.0,
    workers=1,
    collect_unused_days=0,
)
"""Here nobody pays for a status write, and the volume is a person's own folder: nothing is removed unasked."""
LOOK_SECONDS = 0.1
LOUD_FAILURES = 3
"""So many failed passes in a row are worth a word."""
MISSING = ("SecretMissing", "VolumeMissing", "ContainerConfig")
"""Something that a pod needs is not there, and here nobody but the person will bring it."""
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

Show = Callable[[Manifest, str], None]
"""Told of the job as it stands, and of a note to the person."""


class Session:
    """One job in one cluster, whose lock this process holds."""

    def __init__(self, cluster: LocalCluster, key: Key, show: Show) -> None:
        """Must be made in the running loop."""
        self._cluster, self._key, self._show = cluster, key, show
        self._driven = {key}  # and jobs whose ranks it ends first
        self._queue: WorkQueue[Key] = WorkQueue(line=lambda key: key.namespace)
        self._reconciler = Reconciler(cluster, cluster, SETTINGS, hardware=hardware)
        self._workers = Workers(self._queue, self._reconcile, SETTINGS.workers)
        self._has_looked = False
        self._failures, self._error = 0, ""
        self._interrupts = 0

    def stop(self) -> None:
        """As Ctrl-C."""
        self._interrupts += 1

    async def run(self) -> int:
        """Drive the job to its end; the exit code."""
        loop = asyncio.get_running_loop()
        # What was ignored when we were started (nohup, a background job of a script) stays so.
        heeded = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
        for number in heeded:
            loop.add_signal_handler(number, self.stop)
        self._cluster.watch(self._changed)
        watching = asyncio.create_task(self._watch())
        tasks = [
            watching,
            asyncio.create_task(self._cluster.run()),
            asyncio.create_task(self._workers.run()),
        ]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done - {watching}:
                task.result()  # they never end but by an exception
            return watching.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for number in heeded:
                loop.remove_signal_handler(number)

    async def _watch(self) -> int:
        await self._end_others()
        self._queue.add(self._key)
        while True:
            job = self._cluster.sftjob(self._key)
            if job is None:
                return FAILED
            is_current, note = self._is_current(job), self._note()
            if is_current or note:
                self._show(job, note)
            if is_current and not self._has_processes():
                code = outcome(job)
                if code is not None:
                    return code
            if self._interrupts and await self._is_stopped(job):
                return INTERRUPTED
            if self._interrupts > 1:
                return await self._kill()
            await asyncio.sleep(LOOK_SECONDS)

    async def _reconcile(self, key: Key) -> float | None:
        try:
            after = await self._reconciler.reconcile(key)
        except Exception as error:
            self._failures, self._error = self._failures + 1, str(error) or type(error).__name__
            raise
        self._failures, self._has_looked = 0, True
        return after

    async def _is_stopped(self, job: Manifest) -> bool:
        """Suspend it, also where the operator's passes fail; whether nothing runs any more, and the status says so."""
        if not job["spec"].get("suspend"):
            await self._suspend(self._key)
            return False
        await self._suspend_jobs(self._key)
        is_said = self._is_current(job) and is_true(job, "Suspended")
        return (is_said or self._failures > 0) and not self._has_processes()

    def _is_current(self, job: Manifest) -> bool:
        """Whether the status speaks of the spec as it is, and of this run: an earlier one may have left another."""
        observed = job.get("status", {}).get("observedGeneration")
        return self._has_looked and observed == job["metadata"]["generation"]

    def _note(self) -> str:
        if self._failures >= LOUD_FAILURES:
            return f"the operator cannot go on, and tries again: {self._error}"
        if not self._interrupts:
            return ""
        return "stopping, the ranks save a checkpoint (Ctrl-C again: stop at once, without)"

    def _changed(self, key: Key) -> None:
        if key in self._driven:
            self._queue.add(key)

    async def _kill(self) -> int:
        """End the processes; what dies now is no failure, for its Job is suspended."""
        await self._suspend_jobs(self._key)
        while self._has_processes():
            self._cluster.kill_pods(self._labels())
            await asyncio.sleep(LOOK_SECONDS)
        return INTERRUPTED

    async def _end_others(self) -> None:
        """Ranks that a run of another job has left behind hold this machine, and nobody looks after them."""
        while others := self._others():
            self._driven.update(others)
            for key in others:
                await self._suspend(key)
                self._queue.add(key)  # for its status
            job = self._cluster.sftjob(self._key)
            if job is not None:
                names = ", ".join(key.name for key in others)
                self._show(
                    job, f"the ranks of {names} run on from earlier; first they save a checkpoint and stop"
                )
            if self._interrupts > 1:
                self._cluster.kill_pods()
            await asyncio.sleep(LOOK_SECONDS)

    def _others(self) -> list[Key]:
        pods = [pod for pod in self._cluster.pods() if self._cluster.kubelet.is_running(pod)]
        named = ((ref_of(pod).namespace, pod["metadata"].get("labels", {}).get(LABEL_JOB)) for pod in pods)
        keys = {Key(namespace, name) for namespace, name in named if name is not None}
        return sorted(keys - {self._key})

    async def _suspend(self, key: Key) -> None:
        """As the person would; the Jobs too, for the operator's next pass may be late or fail."""
        with contextlib.suppress(NotFound):  # deleted, and its pods are on their way out
            await self._cluster.patch(
                Ref(API_VERSION, KIND, key.namespace, key.name), {"spec": {"suspend": True}}
            )
        await self._suspend_jobs(key)

    async def _suspend_jobs(self, key: Key) -> None:
        """With the mark of a user's suspension, so that the operator lifts it when the job goes on."""
        mark = {"metadata": {"annotations": {ANNOTATION_SUSPENDED_BY: "user"}}, "spec": {"suspend": True}}
        for job in self._cluster.jobs(key):
            if not is_finished(job) and not job["spec"]["suspend"]:
                await self._cluster.patch(ref_of(job), mark)

    def _has_processes(self) -> bool:
        return self._cluster.has_processes(self._labels())

    def _labels(self) -> dict[str, str]:
        return {LABEL_JOB: self._key.name}


def outcome(job: Manifest) -> int | None:
    """The exit code, once nothing but the person can change anything; None while it goes on."""
    if is_true(job, "Complete"):
        return OK
    if is_true(job, "Failed"):
        return FAILED
    reason = condition(job, "Running").get("reason")
    if condition(job, "Accepted").get("status") == "False" or reason in MISSING:
        return USAGE
    return FAILED if reason == "DoesNotFit" else None


async def hardware(job: SFTJob) -> Hardware:
    """What the planner plans for: this machine, shared by the job's pods."""
    memories, majors = node.gpu_memory_mib(), node.gpu_majors()
    return Hardware(
        gpu_memory_bytes=min(memories) * 2**20 if memories else None,
        gpu_bf16=min(majors) >= BF16_MAJOR if majors else None,
        host_memory_bytes=node.memory_bytes() // job.spec.workers.nodes,
    )


def now() -> datetime:
    """The present, aware."""
    return datetime.now(UTC)
