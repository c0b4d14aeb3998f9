"""What the planner is told of GPUs: what the platform said, else what GPU feature discovery wrote on the nodes."""

from __future__ import annotations

import asyncio
import logging
import re
from typing import NamedTuple

from sftjob_operator.api.v1alpha1 import SFTJob
from sftjob_operator.cluster.base import Cluster, Rejected
from sftjob_operator.planning.hardware import BF16_MAJOR, Hardware, quantity_bytes
from sftjob_operator.planning.nodes import may_run_on
from sftjob_operator.settings import Settings

logger = logging.getLogger(__name__)

RESOURCE = "nvidia.com/gpu"  # the labels speak of whole GPUs of this vendor, and of nothing else
MEMORY_LABEL = "nvidia.com/gpu.memory"  # MiB of one GPU
MAJOR_LABEL = "nvidia.com/gpu.compute.major"  # of the compute capability
COUNT_LABEL = "nvidia.com/gpu.count"  # GPUs of the node
REPLICAS_LABEL = "nvidia.com/gpu.replicas"  # as how many each of them is offered, where GPUs are shared
CACHE_SECONDS = 300.0
ASSUMED = "planning with 40Gi per GPU; set SFTJOB_OPERATOR_GPU_MEMORY"


# A slice of a GPU, whose gigabytes are in its name: nvidia.com/mig-1g.10gb. GPUs that can be cut (A100 on) have bf16.
_SLICE = re.compile(r"^nvidia\.com/mig-.*?(\d+)gb\b")


class _Node(NamedTuple):
    name: str
    labels: dict[str, str]


class Gpus:
    """The nodes are listed at most every five minutes, and only when a job with GPUs asks."""

    def __init__(self, cluster: Cluster, settings: Settings) -> None:
        """ValueError when the setting is no quantity."""
        self._cluster = cluster
        self._set = quantity_bytes(settings.gpu_memory) if settings.gpu_memory else None
        self._nodes: list[_Node] = []
        self._read_at: float | None = None

    async def __call__(self, job: SFTJob) -> Hardware:
        """Of the weakest GPU on the nodes this job may run on: a gang is as large as its smallest member."""
        workers = job.spec.workers
        if workers.gpus_per_node == 0:
            return Hardware()
        if self._set is not None:
            return Hardware(gpu_memory_bytes=self._set)
        if (part := _SLICE.match(workers.gpu_resource_name)) is not None:
            return Hardware(gpu_memory_bytes=int(part[1]) * 10**9, gpu_bf16=True)
        if workers.gpu_resource_name != RESOURCE:
            return Hardware()
        now = asyncio.get_running_loop().time()
        if self._read_at is None or now - self._read_at > CACHE_SECONDS:
            self._nodes, self._read_at = await self._read(), now
        template = workers.pod_template.spec
        suited = [
            node.labels
            for node in self._nodes
            if may_run_on(template, node.name, node.labels) and _offers(node.labels, workers.gpus_per_node)
        ]
        majors = _numbers(suited, MAJOR_LABEL)
        smallest = min(_numbers(suited, MEMORY_LABEL), default=None)
        return Hardware(
            gpu_memory_bytes=None if smallest is None else smallest * 2**20,
            gpu_bf16=min(majors) >= BF16_MAJOR if majors else None,
        )

    async def _read(self) -> list[_Node]:
        try:
            found = await self._cluster.list("v1", "Node", "", {})
        except Rejected as error:
            if error.code != 403:
                raise
            logger.warning("nodes cannot be listed, %s: %s", ASSUMED, error)
            return []
        nodes = [_Node(node["metadata"]["name"], node["metadata"].get("labels") or {}) for node in found]
        if not any(MEMORY_LABEL in node.labels for node in nodes):
            logger.warning("no node has the label %s, %s", MEMORY_LABEL, ASSUMED)
        return nodes


def _offers(labels: dict[str, str], gpus: int) -> bool:
    """Whether the node has so many GPUs for one pod; one that does not say how many may have."""
    count = _numbers([labels], COUNT_LABEL)
    replicas = _numbers([labels], REPLICAS_LABEL) or [1]
    return not count or count[0] * max(replicas[0], 1) >= gpus


def _numbers(nodes: list[dict[str, str]], label: str) -> list[int]:
    return [int(labels[label]) for labels in nodes if labels.get(label, "").isdecimal()]
