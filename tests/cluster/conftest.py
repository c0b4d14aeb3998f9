"""Fixtures on the real cluster: what is missing on this machine is skipped loudly, and fails in CI."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

import pytest

from machine import skip_or_fail
from rooms import ROOT, Kube, Room, connect, install, make_room, served, uninstall

LAST = "test_least_privilege.py"
HERE = Path(__file__).resolve().parent
_left_out = pytest.StashKey[bool]()


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What looks back on all the others comes last."""
    items.sort(key=lambda item: item.path == HERE / LAST)


def pytest_deselected(items: Sequence[pytest.Item]) -> None:
    for item in items:
        if item.path.parent == HERE and item.get_closest_marker("soak") is None:
            item.config.stash[_left_out] = True


@pytest.fixture(scope="session")
def all_of_this_folder(request: pytest.FixtureRequest) -> bool:
    """Whether every test in it is a part of this run, but for the long matrices."""
    collected = {item.path for item in request.session.items}
    return not request.config.stash.get(_left_out, False) and collected.issuperset(HERE.glob("test_*.py"))


@pytest.fixture(scope="session")
def began() -> datetime:
    """When the first of these tests began: the audit log may be older."""
    return datetime.now(UTC)


@pytest.fixture(scope="session")
def kube() -> Iterator[Kube]:
    """The cluster; ended afterwards when the tests began it."""
    if sys.platform != "linux" or (os.geteuid() != 0 and "KUBECONFIG" not in os.environ):
        skip_or_fail("a real Kubernetes needs Linux and root (or KUBECONFIG of one that exists)")
    from devcluster import cluster
    from devcluster.processes import CommandError

    was_up = cluster.is_healthy()
    try:
        yield connect()
    except CommandError as error:
        skip_or_fail(str(error))
    if not was_up and not os.environ.get("SFTJOB_KEEP_CLUSTER"):
        cluster.down()


@pytest.fixture(scope="session")
def crd(kube: Kube) -> None:
    """The SFTJob kind, served."""
    kube.kubectl("apply", "--server-side", "--force-conflicts", "-f", str(ROOT / "crds"), check=True)
    served(kube, "sftjobs.sftjob.dev")


@pytest.fixture(scope="session")
def operator(kube: Kube, began: datetime) -> Iterator[Kube]:
    """The operator, from the image that the Dockerfile makes, installed by the chart."""
    kube.kubectl(
        "delete", "crd", "sftjobs.sftjob.dev", "--ignore-not-found"
    )  # Helm adopts no stranger's objects
    install(kube)
    yield kube
    uninstall(kube)


@pytest.fixture
def room(operator: Kube, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Room]:
    """A fresh namespace that enforces the `restricted` Pod Security Standard, and its shared volume."""
    yield from make_room(operator, request.node.name.replace("_", "-")[5:40].strip("-").lower(), tmp_path)
