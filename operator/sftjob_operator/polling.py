"""Polling /progress of rank 0's pod: at most every so many seconds, however often a key is looked at.

The pod is untrusted: what it says is bounded by the cluster and checked against the schema.
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


class ProgressPoller:
    """The last word of every training job; `latest` is read by the metrics."""

    def __init__(self, cluster: Cluster, seconds: float) -> None:
        """`seconds` between two polls of one job."""
        self._cluster, self._seconds = cluster, seconds
        self._labels: dict[Key, dict[str, str]] = {}
        self._asked: dict[Key, float] = {}
        self._pods: dict[Key, Manifest] = {}  # rank 0's pod, kept until it stops answering
        self.latest: dict[Key, Progress] = {}

    async def poll(self, key: Key, labels: Mapping[str, str]) -> Progress | None:
        """What the pod with these labels and index 0 said, about `seconds` old; None when it never spoke."""
        if self._labels.setdefault(key, dict(labels)) != labels:  # another attempt
            self.forget(key)
            self._labels[key] = dict(labels)
        now = asyncio.get_running_loop().time()
        if now - self._asked.get(key, -self._seconds) >= self._seconds * EARLY:
            self._asked[key] = now
            heard = await self._ask(key, labels)
            if heard is not None:
                self.latest[key] = heard
        return self.latest.get(key)

    def due(self, key: Key) -> float | None:
        """Seconds until the next poll is due; None for a job that is not polled."""
        asked = self._asked.get(key)
        return None if asked is None else max(asked + self._seconds - asyncio.get_running_loop().time(), 0.0)

    def forget(self, key: Key) -> None:
        """The job does not train (any more)."""
        self._labels.pop(key, None)
        self._asked.pop(key, None)
        self._pods.pop(key, None)
        self.latest.pop(key, None)

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
