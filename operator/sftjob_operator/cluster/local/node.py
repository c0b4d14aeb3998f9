"""This machine as a Kubernetes Node: what it can give to pods."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from sftjob_operator.cluster.base import Manifest

GPU = "nvidia.com/gpu"


def name() -> str:
    """Our host name as a node name."""
    return re.sub(r"[^a-z0-9.-]", "-", socket.gethostname().lower()).strip("-.") or "local"


def cpus() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory_bytes() -> int:
    """Physical memory, or what this process's control group may use of it: in a container it is often less."""
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([physical, *memory_limits(Path("/proc/self/cgroup"), Path("/sys/fs/cgroup"))])


def memory_limits(own: Path, mount: Path) -> Iterator[int]:
    """The limits of our control group and of all above it; `own` says which it is, in version 1 and 2."""
    try:
        lines = own.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            root, name = mount, "memory.max"
        elif "memory" in controllers.split(","):
            root, name = mount / "memory", "memory.limit_in_bytes"
        else:
            continue
        group = root / path.lstrip("/")
        for folder in [group, *group.parents][: len(group.relative_to(root).parts) + 1]:
            with contextlib.suppress(OSError, ValueError):  # not there, or "max"
                yield int((folder / name).read_text())


def gpu_memory_mib() -> tuple[int, ...]:
    """Memory of each NVIDIA GPU; empty where there is none."""
    return _gpus("memory.total")


def gpu_majors() -> tuple[int, ...]:
    """Major compute capability of each."""
    return _gpus("compute_cap")


@cache
def _gpus(what: str) -> tuple[int, ...]:
    program = shutil.which("nvidia-smi")
    if program is None or not Path("/dev/nvidiactl").exists():
        return ()
    query = [program, f"--query-gpu={what}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, check=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return ()
    whole = (line.partition(".")[0] for line in done.stdout.split())
    return tuple(int(number) for number in whole if number.isdecimal())


def node() -> Manifest:
    """The only Node of a local cluster, with the GPU labels that NVIDIA's feature discovery would set."""
    memories = gpu_memory_mib()
    resources = {"cpu": str(cpus()), "memory": f"{memory_bytes() >> 10}Ki"}
    labels = {"kubernetes.io/hostname": name()}
    if memories:
        resources[GPU] = str(len(memories))
        labels |= {"nvidia.com/gpu.memory": str(min(memories)), "nvidia.com/gpu.count": str(len(memories))}
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": name(),
            "namespace": "",
            "uid": name(),
            "labels": labels,
            "resourceVersion": "0",
        },
        "status": {
            "capacity": resources,
            "allocatable": resources,
            "conditions": [{"type": "Ready", "status": "True", "reason": "KubeletReady"}],
        },
    }
