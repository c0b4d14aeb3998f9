"""What tests of hostile input share: a process that may not take a machine's memory, and files larger than the disk."""

from __future__ import annotations

import contextlib
import os
import resource
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

MEBIBYTE = 1 << 20
NESTED = "[" * 200_000 + "]" * 200_000


@contextlib.contextmanager
def little_memory(mebibytes: int = 1024) -> Iterator[None]:
    """So much more than this process has: what would take a machine's memory gets a MemoryError."""
    pa.array([0])  # Arrow's allocator reserves a gibibyte of addresses at its first use
    before = resource.getrlimit(resource.RLIMIT_AS)
    status = Path("/proc/self/statm")
    if status.exists():
        size = int(status.read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + mebibytes * MEBIBYTE, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def sparse(path: Path, gibibytes: int, start: str = "") -> Path:
    """A file that reads as `start` and zeros, and takes no room."""
    path.write_text(start)
    os.truncate(path, gibibytes << 30)
    return path
