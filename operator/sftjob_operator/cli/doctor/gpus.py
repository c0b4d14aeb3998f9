"""What `sftjob doctor` makes of the GPUs of a cluster, from what its nodes offer and from their labels. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from sftjob_operator.api.objects import Manifest
from sftjob_operator.cli.doctor.check import Check, Listed

_NVIDIA = "nvidia.com/gpu"
_RESOURCES = (_NVIDIA, "amd.com/gpu", "habana.ai/gaudi")
MEMORY_LABEL = "nvidia.com/gpu.memory"
DRIVER_LABELS = ("nvidia.com/cuda.driver-version.major", "nvidia.com/cuda.driver.major")
"""Of NVIDIA's GPU feature discovery; the second is the first's name of before 0.15."""
CUDA_MAJOR = 13
"""Of the torch in requirements/trainer.txt, and so of the trainer image as the Dockerfile makes it."""
OLDEST_DRIVER = 580
"""For any CUDA 13 (https://docs.nvidia.com/deploy/cuda-compatibility/minor-version-compatibility.html)."""


def checks(nodes: Listed) -> Iterator[Check]:
    """What they offer, and whether the drivers of NVIDIA's can run the trainer image."""
    if nodes is None:
        yield Check("GPUs", "unknown", "you may not list nodes")
        return
    yield _gpus(nodes)
    if nvidia := [node for node in nodes if _NVIDIA in dict(_gpus_of(node))]:
        yield _drivers(nvidia)


def _drivers(nodes: Sequence[Manifest]) -> Check:
    name = "GPU driver"
    known = {node["metadata"]["name"]: version for node in nodes if (version := _driver(node))}
    needs = f"CUDA {CUDA_MAJOR} of the trainer image needs {OLDEST_DRIVER} or newer"
    old = [f"{version} on {node}" for node, version in known.items() if version < OLDEST_DRIVER]
    if old:
        fix = "update the driver, or build the trainer image with an older CUDA (docs/install.md, the images)"
        return Check(name, "warning", f"{', '.join(old[:3])}; {needs}", fix)
    if len(known) < len(nodes):
        return Check(name, "unknown", f"no label {DRIVER_LABELS[0]} tells which; {needs}")
    versions = " and ".join(map(str, sorted(set(known.values()))))
    return Check(name, "ok", f"{versions}; {needs}")


def _driver(node: Manifest) -> int | None:
    """The major number of its version; None where no label says it."""
    texts = [_labels(node).get(label, "") for label in DRIVER_LABELS]
    return next((int(text) for text in texts if text.isdigit()), None)


def _gpus(nodes: Sequence[Manifest]) -> Check:
    name = "GPUs"
    with_gpus = [(node, kind, count) for node in nodes for kind, count in _gpus_of(node)]
    if not with_gpus:
        fix = "add nodes with GPUs and their device plugin, or set spec.workers.gpusPerNode: 0"
        return Check(name, "warning", f"none of {len(nodes)} nodes offers any", fix)
    kinds = sorted({kind for _, kind, _ in with_gpus})
    said = ", ".join(
        f"{sum(count for _, k, count in with_gpus if k == kind)} {kind} on "
        f"{sum(1 for _, k, _ in with_gpus if k == kind)} nodes"
        for kind in kinds
    )
    nvidia = [node for node, kind, _ in with_gpus if kind == _NVIDIA]
    bare = [node["metadata"]["name"] for node in nvidia if MEMORY_LABEL not in _labels(node)]
    if bare:
        fix = "install NVIDIA's GPU feature discovery, or set the chart's operator.gpuMemory (else 40Gi is assumed)"
        return Check(name, "warning", f"{said}; no label {MEMORY_LABEL} on {', '.join(bare[:3])}", fix)
    memory = sorted(
        {int(_labels(node)[MEMORY_LABEL]) for node in nvidia if _labels(node)[MEMORY_LABEL].isdigit()}
    )
    each = f", of {' and '.join(f'{mib / 1024:.0f}Gi' for mib in memory)}" if memory else ""
    return Check(name, "ok", said + each)


def _gpus_of(node: Manifest) -> Iterator[tuple[str, int]]:
    for kind in _RESOURCES:
        text = str(node.get("status", {}).get("allocatable", {}).get(kind, "0"))
        if text.isdigit() and int(text):
            yield kind, int(text)


def _labels(node: Manifest) -> Mapping[str, str]:
    return node["metadata"].get("labels") or {}
