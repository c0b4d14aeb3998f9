"""How much memory one GPU has: what the platform said, else what GPU feature discovery wrote on the nodes."""

from __future__ import annotations

import asyncio
import logging

from sftjob_operator.api.v1alpha1 import SFTJob
from sftjob_operator.cluster.base import Cluster, ClusterError
from sftjob_operator.planning.hardware import Hardware, quantity_bytes
from sftjob_operator.settings import Settings

logger = logging.getLogger(__name__)

LABEL = "nvidia.com/gpu.memory"  # MiB of one GPU
CACHE_SECONDS = 300.0
ASSUMED = "planning with 40Gi per GPU; set SFTJOB_OPERATOR_GPU_MEMORY"


class GpuMemory:
    """The nodes are listed at most every five minutes, and only when a job with GPUs asks."""

    def __init__(self, cluster: Cluster, settings: Settings) -> None:
        """ValueError when the setting is no quantity."""
        self._cluster = cluster
        self._set = quantity_bytes(settings.gpu_memory) if settings.gpu_memory else None
        self._nodes: list[dict[str, str]] = []  # their labels
        self._read_at: float | None = None

    async def __call__(self, job: SFTJob) -> Hardware:
        """Of the smallest GPU on the nodes this job may run on: a gang is as large as its smallest member."""
        if job.spec.workers.gpus_per_node == 0:
            return Hardware()
        if self._set is not None:
            return Hardware(gpu_memory_bytes=self._set)
        now = asyncio.get_running_loop().time()
        if self._read_at is None or now - self._read_at > CACHE_SECONDS:
            self._nodes, self._read_at = await self._read(), now
        selector = job.spec.workers.pod_template.spec.node_selector
        sizes = [
            int(labels[LABEL]) * 2**20
            for labels in self._nodes
            if labels.get(LABEL, "").isdigit() and selector.items() <= labels.items()
        ]
        return Hardware(gpu_memory_bytes=min(sizes, default=None))

    async def _read(self) -> list[dict[str, str]]:
        try:
            nodes = await self._cluster.list("v1", "Node", "", {})
        except ClusterError as error:
            logger.warning("nodes cannot be listed, %s: %s", ASSUMED, error)
            return []
        labels = [dict(node["metadata"].get("labels") or {}) for node in nodes]
        if not any(LABEL in each for each in labels):
            logger.warning("no node has the label %s, %s", LABEL, ASSUMED)
        return labels
