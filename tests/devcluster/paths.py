"""Where the cluster keeps its things, and the few fixed names and addresses it owns on a machine.

One cluster per machine: the names are constants, so that `down` finds everything without a memory.
Nothing here touches the disk.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[1]

BRIDGE = "sftjob0"
BRIDGE_ADDRESS = "172.29.240.1"
BRIDGE_NETWORK = "172.29.240.0/24"
POD_NETWORK = "10.231.0.0/16"
SERVICE_NETWORK = "10.232.0.0/16"
SERVICE_ADDRESS = "10.232.0.1"
API_PORT = 6443
API_URL = f"https://{BRIDGE_ADDRESS}:{API_PORT}"


class Node(NamedTuple):
    """One pretended machine: a network namespace on the bridge, with its own slice of pod addresses."""

    name: str
    address: str
    pod_subnet: str

    @property
    def namespace(self) -> str:
        """The network namespace's name; the prefix keeps it apart from other people's."""
        return f"sftjob-{self.name}"

    @property
    def veth(self) -> str:
        return f"sftjob-{self.name[-1]}"

    @property
    def cgroup(self) -> str:
        return f"sftjob-{self.name}"


NODES = (
    Node("node-1", "172.29.240.11", "10.231.1.0/24"),
    Node("node-2", "172.29.240.12", "10.231.2.0/24"),
)


def node(name: str) -> Node:
    for candidate in NODES:
        if candidate.name == name:
            return candidate
    raise ValueError(f"no node {name!r}; there are {', '.join(n.name for n in NODES)}")


def cache() -> Path:
    """What may be kept between runs and clones: built programs, and below it the running cluster."""
    if explicit := os.environ.get("SFTJOB_CACHE"):
        return Path(explicit).expanduser().resolve()
    base = os.environ.get("XDG_CACHE_HOME")
    return ((Path(base) if base else Path.home() / ".cache") / "sftjob").expanduser().resolve()


def state() -> Path:
    return cache() / "devcluster"


def kubeconfig() -> Path:
    return state() / "kubeconfig"


def logs() -> Path:
    return state() / "logs"


def credentials() -> Path:
    return state() / "credentials"


def mounts() -> Path:
    """What is mounted below it while the nodes run is seen by their pods."""
    return state() / "mounts"


def node_directory(name: str) -> Path:
    return state() / "nodes" / name
