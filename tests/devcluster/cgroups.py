"""One cgroup per node, so that two kubelets on one machine do not fight over `kubepods`.

Also the surest list of a node's containers: whatever runs in the node's cgroup is killed with it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path

from devcluster.processes import CommandError

V2_CONTROLLERS = ("cpuset", "cpu", "io", "memory", "pids")


def create(name: str) -> None:
    if is_unified():
        _create_unified(Path("/sys/fs/cgroup"), name)
        return
    for hierarchy in _hierarchies():
        directory = hierarchy / name
        directory.mkdir(exist_ok=True)
        for setting in ("cpuset.cpus", "cpuset.mems"):
            # A new cpuset is empty, and nothing can run in an empty one.
            if (directory / setting).exists():
                (directory / setting).write_text((hierarchy / setting).read_text())


def remove(name: str) -> None:
    """Kill everything below the node's cgroup and delete it."""
    roots = [hierarchy / name for hierarchy in _hierarchies() if (hierarchy / name).is_dir()]
    deadline = time.monotonic() + 10
    while any(_kill(root) for root in roots) and time.monotonic() < deadline:
        time.sleep(0.05)
    for root in roots:
        for directory in _bottom_up(root):
            with contextlib.suppress(OSError):
                directory.rmdir()
    if left := [str(root) for root in roots if root.is_dir()]:
        raise CommandError(f"these cgroups would not go: {', '.join(left)}")


def is_unified() -> bool:
    return Path("/sys/fs/cgroup/cgroup.controllers").exists()


def _create_unified(root: Path, name: str) -> None:
    directory = root / name
    directory.mkdir(exist_ok=True)
    for parent in (root, directory):
        offered = (parent / "cgroup.controllers").read_text().split()
        for controller in V2_CONTROLLERS:
            if controller in offered:
                with contextlib.suppress(OSError):
                    (parent / "cgroup.subtree_control").write_text(f"+{controller}")


def _hierarchies() -> list[Path]:
    """Every mounted hierarchy, in the hybrid set-up the (controller-less) unified one too."""
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    return [Path(fields[1]) for fields in mounts if fields[2] in ("cgroup", "cgroup2")]


def _bottom_up(root: Path) -> list[Path]:
    return [Path(directory) for directory, _, _ in os.walk(root, topdown=False)]


def _kill(root: Path) -> bool:
    """Kill what runs below; whether anything did."""
    found = False
    for directory in _bottom_up(root):
        with contextlib.suppress(OSError):
            for pid in (directory / "cgroup.procs").read_text().split():
                # A process of another pid namespace shows as 0, which would mean our own group.
                if int(pid) > 1:
                    found = True
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(int(pid), signal.SIGKILL)
    return found
