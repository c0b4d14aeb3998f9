"""Polling /progress of rank 0's pod: at most every so many seconds, however often a key is looked at.

The pod is untrusted: what it says is bounded by the cluster and checked against the schema. That it says nothing must
not hold up the jobs of others: a pass waits a moment, and what comes later counts at the next.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping

from sft_trainer.config import Progress
from sftjob_operator.cluster.base import Cluster, Key, Manifest
from sftjob_operator.reports import read_progress

logger = logging.getLogger(__name__)

INDEX = "batch.kubernetes.io/job-completion-index"
EARLY = 0.9  # a key that comes back a moment before its time need not come back once more
PATIENCE_SECONDS = 0.3  # that a pass waits for an answer
OPEN_SECONDS = 1.0  # until it is looked for again
LONGEST_PAUSE = 6  # times the usual one, for a pod that does not answer


class ProgressPoller:
    """The last word of every training job; `latest` is read by the metrics."""

    def __init__(self, cluster: Cluster, seconds: float) -> None:
        """`seconds` between two polls of one job."""
        self._cluster, self._seconds = cluster, seconds
        self._labels: dict[Key, dict[str, str]] = {}
        self._next: dict[Key, float] = {}  # when it is to be asked again
        self._asking: dict[Key, asyncio.Task[Progress | None]] = {}
        self._silent: dict[Key, int] = {}  # questions in a row without an answer
        self._pods: dict[Key, Manifest] = {}  # rank 0's pod, kept until it stops answering
        self.latest: dict[Key, Progress] = {}

    async def poll(self, key: Key, labels: Mapping[str, str]) -> Progress | None:
        """What the pod with these labels and index 0 said, about `seconds` old; None when it never spoke."""
        if self._labels.setdefault(key, dict(labels)) != labels:  # another attempt
            self.forget(key)
            self._labels[key] = dict(labels)
        now = asyncio.get_running_loop().time()
        if key in self._asking:
            await self._hear(key, 0.0)
        elif now >= self._next.get(key, now) - self._seconds * (1 - EARLY):
            self._asking[key] = asking = asyncio.create_task(self._ask(key, labels))
            asking.add_done_callback(lambda task: task.cancelled() or task.exception())  # nobody may hear it
            self._next[key] = now + self._seconds
            await self._hear(key, PATIENCE_SECONDS)
        return self.latest.get(key)

    def due(self, key: Key) -> float | None:
        """Seconds until the next poll, or another look for an answer, is due; None for a job that is not polled."""
        if key in self._asking:
            return OPEN_SECONDS
        after = self._next.get(key)
        return None if after is None else max(after - asyncio.get_running_loop().time(), 0.0)

    def forget(self, key: Key) -> None:
        """The job does not train (any more)."""
        if (asking := self._asking.pop(key, None)) is not None:
            asking.cancel()
        for known in (self._labels, self._next, self._silent, self._pods, self.latest):
            known.pop(key, None)

    async def _hear(self, key: Key, seconds: float) -> None:
        """Take the answer if it comes within `seconds`; the longer there is none, the less often it is asked for."""
        asking = self._asking[key]
        done, _ = await asyncio.wait({asking}, timeout=seconds)
        if not done:
            return
        del self._asking[key]
        heard = asking.result()
        if heard is not None:
            self.latest[key] = heard
            self._silent.pop(key, None)
            return
        silent = self._silent[key] = self._silent.get(key, 0) + 1
        self._next[key] += self._seconds * (min(2 ** (silent - 1), LONGEST_PAUSE) - 1)

    async def _ask(self, key: Key, labels: Mapping[str, str]) -> Progress | None:
        pod = self._pods.pop(key, None) or await self._index_zero(key, labels)
        body = None if pod is None else await self._cluster.fetch_progress(pod)
        if pod is None or body is None:
            return None
        progress = read_progress(body)
        if progress is None:
            logger.warning("/progress of pod %s does not follow the schema", pod["metadata"]["name"])
            return None
        self._pods[key] = pod
        return progress

    async def _index_zero(self, key: Key, labels: Mapping[str, str]) -> Manifest | None:
        for pod in await self._cluster.list("v1", "Pod", key.namespace, dict(labels)):
            metadata, phase = pod["metadata"], (pod.get("status") or {}).get("phase")
            index = {**(metadata.get("annotations") or {}), **(metadata.get("labels") or {})}.get(INDEX)
            if index == "0" and phase == "Running" and not metadata.get("deletionTimestamp"):
                return pod
        return None
