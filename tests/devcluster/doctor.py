"""What the cluster needs of the machine, said before anything fails half-way.

On a Debian machine the missing packages are installed; the containerd service which the package
starts on a machine with systemd is left alone: our nodes run their own, with their own directories.
"""

from __future__ import annotations

import os
import platform
import shutil
import struct
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from devcluster.processes import CommandError, say, which

CNI_DIRECTORIES = (Path("/opt/cni/bin"), Path("/usr/lib/cni"))
CNI_PLUGINS = ("ptp", "host-local", "loopback")
PROGRAMS = {
    "containerd": "containerd",
    "ctr": "containerd",
    "runc": "runc",
    "nft": "nftables",
    "ip": "iproute2",
    "nsenter": "util-linux",
    "unshare": "util-linux",
    "openssl": "openssl",
}


class Finding(NamedTuple):
    """One thing that is needed, whether it is there, and the Debian package that would bring it."""

    name: str
    present: bool
    detail: str = ""
    package: str | None = None


def findings() -> list[Finding]:
    found = [
        Finding("Linux", sys.platform == "linux", platform.release()),
        Finding("root", os.geteuid() == 0, "network namespaces, cgroups and mounts need it"),
        Finding(
            "merged /usr", Path("/bin").is_symlink(), "/bin -> usr/bin; the thin image is made of such links"
        ),
        Finding(
            "x86-64",
            platform.machine() == "x86_64",
            f"{platform.machine()}; kubectl and helm come for x86-64 only",
        ),
        Finding("writable cgroups", os.access("/sys/fs/cgroup", os.W_OK), "/sys/fs/cgroup"),
    ]
    for program, package in PROGRAMS.items():
        path = which(program)
        found.append(Finding(program, path is not None, path or "", package))
    plugins = cni_directory()
    found.append(
        Finding("CNI plugins", plugins is not None, str(plugins or ""), "containernetworking-plugins")
    )
    box = busybox()
    found.append(Finding("static busybox", box is not None, str(box or ""), "busybox-static"))
    found.append(
        Finding("a package client", bool(shutil.which("uv")) or _has_pip(), "uv or pip, for kubectl and helm")
    )
    found.append(Finding("Go", *_go()))
    return found


def missing() -> list[Finding]:
    return [finding for finding in findings() if not finding.present]


def report() -> bool:
    """Print the findings; whether nothing is missing."""
    found = findings()
    for finding in found:
        mark = "ok     " if finding.present else "MISSING"
        print(f"{mark} {finding.name:18} {finding.detail}")
    absent = [finding for finding in found if not finding.present]
    if packages := sorted({finding.package for finding in absent if finding.package}):
        print(
            f"\nOn Debian:  apt-get update && apt-get install -y --no-install-recommends {' '.join(packages)}"
        )
    return not absent


def provide() -> None:
    """Make sure that all is there, installing Debian packages where that is possible."""
    absent = missing()
    packages = sorted({finding.package for finding in absent if finding.package})
    if packages and os.geteuid() == 0 and shutil.which("apt-get"):
        install = ["apt-get", "install", "-y", "--no-install-recommends", *packages]
        for command in (["apt-get", "update"], install):
            say(f"running: {' '.join(command)}")
            environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
            done = subprocess.run(command, env=environment, capture_output=True, text=True)
            if done.returncode != 0:
                raise CommandError(f"{' '.join(command)} failed:\n{done.stdout[-1500:]}{done.stderr[-1500:]}")
        absent = missing()
    if absent:
        names = ", ".join(finding.name for finding in absent)
        raise CommandError(f"this machine lacks: {names}. `python tests/devcluster doctor` says more")


def cni_directory() -> Path | None:
    for directory in CNI_DIRECTORIES:
        if all((directory / plugin).exists() for plugin in CNI_PLUGINS):
            return directory
    return None


def busybox() -> Path | None:
    """A statically linked busybox: it is the whole content of the pause image."""
    path = which("busybox")
    return Path(path) if path is not None and _is_static(Path(path)) else None


def _is_static(program: Path) -> bool:
    """No ELF program header asks for an interpreter (the dynamic loader)."""
    content = program.read_bytes()
    (first,) = struct.unpack_from("<Q", content, 32)
    size, count = struct.unpack_from("<HH", content, 54)
    kinds = [struct.unpack_from("<I", content, first + index * size)[0] for index in range(count)]
    return 3 not in kinds


def _go() -> tuple[bool, str]:
    """Never missing: where there is none, or an old one, the build fetches it from PyPI."""
    for candidate in (shutil.which("go"), "/usr/local/go/bin/go"):
        if candidate and Path(candidate).exists():
            return True, f"{candidate}; if it is too old, the build fetches a newer one from PyPI"
    return True, "none here: the build fetches it from PyPI"


def _has_pip() -> bool:
    return subprocess.run([sys.executable, "-m", "pip", "--version"], capture_output=True).returncode == 0
