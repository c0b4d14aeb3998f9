"""What the container's cgroup says: processes killed for memory, what is left of it, and the CPUs it may use.

Both versions of cgroups, as seen from inside a container (own namespace or not). A file that is missing is an
answer that is missing, never an error.
"""

from __future__ import annotations

import math
import os
from pathlib import Path

_MOUNT = Path("/sys/fs/cgroup")
_OWN = Path("/proc/self/cgroup")


def oom_kills(mount: Path = _MOUNT, own: Path = _OWN) -> int | None:
    """Processes of this cgroup that the kernel has killed for memory so far; None where it does not say."""
    for file in _files(mount, own, "memory", v1="memory.oom_control", v2="memory.events"):
        for line in _read(file).splitlines():
            key, _, value = line.partition(" ")
            if key == "oom_kill" and value.strip().isdigit():
                return int(value)
    return None


def cpus(mount: Path = _MOUNT, own: Path = _OWN) -> int:
    """Whole CPUs this process may use: its affinity, or its cgroup's quota if that is less; at least 1."""
    count = float(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    for file in _files(mount, own, "cpu", v1="cpu.cfs_quota_us", v2="cpu.max"):
        words = _read(file).split()
        if file.name == "cpu.cfs_quota_us":
            words += _read(file.with_name("cpu.cfs_period_us")).split()
        if len(words) == 2 and words[0].isdigit() and words[1].isdigit() and int(words[1]) > 0:
            count = min(count, int(words[0]) / int(words[1]))
    return max(1, math.floor(count))


def memory_left(mount: Path = _MOUNT, own: Path = _OWN) -> int | None:
    """Bytes this cgroup may still take, what the page cache would give back included; None without a limit."""
    for file in _files(mount, own, "memory", v1="memory.limit_in_bytes", v2="memory.max"):
        used = "memory.usage_in_bytes" if file.name == "memory.limit_in_bytes" else "memory.current"
        limit, taken = _read(file).strip(), _read(file.with_name(used)).strip()
        if limit.isdigit() and taken.isdigit() and int(limit) < 2**60:  # v1 says "none" as a huge number
            return max(0, int(limit) - int(taken) + _inactive(file.with_name("memory.stat")))
    return None


def _inactive(stat: Path) -> int:
    for line in _read(stat).splitlines():
        key, _, value = line.partition(" ")
        if key in ("inactive_file", "total_inactive_file") and value.strip().isdigit():
            return int(value)
    return 0


def _files(mount: Path, own: Path, controller: str, *, v1: str, v2: str) -> list[Path]:
    """Where the file of this cgroup may be, the likeliest first."""
    paths: list[Path] = []
    for line in _read(own).splitlines():
        _, controllers, path = line.split(":", 2)
        inside = path.lstrip("/")
        if controller in controllers.split(","):
            paths += [mount / controllers / inside / v1, mount / controller / inside / v1]
        elif not controllers:
            paths += [mount / inside / v2, mount / "unified" / inside / v2]
    paths += [mount / v2, mount / controller / v1]  # the container's own root, when it has no namespace
    return [path for path in dict.fromkeys(paths) if path.is_file()]


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""
