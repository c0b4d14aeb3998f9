"""What `sftjob doctor` makes of this machine, where jobs run as local processes."""

from __future__ import annotations

import importlib.metadata
import platform
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from sftjob_operator.cli.doctor.check import Check
from sftjob_operator.cluster.local import node

PACKAGES = ("torch", "deepspeed", "transformers", "peft", "pyarrow")
_GIB = 2**30
_LITTLE_MEMORY, _LITTLE_DISK = 4 * _GIB, 5 * _GIB


def checks(folder: Path) -> Iterator[Check]:
    """`folder` is where workspace and state will lie."""
    yield Check("Python", "ok", f"{platform.python_version()} ({sys.executable})")
    yield trainer(versions())
    memory, cores = node.memory_bytes(), node.cpus()
    little = memory < _LITTLE_MEMORY
    fix = "take a small model with LoRA and a short maxLength" if little else ""
    yield Check("memory", "warning" if little else "ok", f"{memory / _GIB:.0f} GiB for all ranks", fix)
    yield Check("cores", "ok", f"{cores}, shared by the ranks of a job")
    gpus = node.gpu_memory_mib()
    if gpus:
        yield Check("GPUs", "ok", f"{len(gpus)} of {min(gpus) / 1024:.0f} GiB")
    else:
        yield Check("GPUs", "unknown", "none: jobs need spec.workers.gpusPerNode: 0 here")
    free = shutil.disk_usage(folder).free
    full = free < _LITTLE_DISK
    fix = "free some: a checkpoint is about 12 bytes per trained parameter" if full else ""
    yield Check("disk", "warning" if full else "ok", f"{free / _GIB:.0f} GiB free in {folder}", fix)


def versions() -> dict[str, str | None]:
    """Of what the trainer needs; None where it is not installed. Nothing is imported: torch takes seconds."""
    found: dict[str, str | None] = {}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    return found


def trainer(found: dict[str, str | None]) -> Check:
    """Whether ranks can start at all."""
    absent = [name for name, version in found.items() if version is None]
    if absent:
        fix = "pip install 'sftjob[trainer]' (or make install in a checkout)"
        return Check("trainer", "missing", f"not installed: {', '.join(absent)}", fix)
    return Check("trainer", "ok", ", ".join(f"{name} {version}" for name, version in found.items()))
