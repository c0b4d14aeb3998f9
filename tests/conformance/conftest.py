"""The same tests on local processes and on a real API server with kubelets."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from cluster.conftest import crd, kube
from conformance.rig import Rig
from rooms import ROOT, Kube, Room, make_room, resting_operator
from sftjob_operator.cluster.local import LocalCluster

__all__ = ["crd", "kube"]


@pytest.fixture(params=["local", pytest.param("kubernetes", marks=pytest.mark.cluster)])
async def rig(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Rig]:
    if request.param == "local":
        async with local(tmp_path) as ready:
            yield ready
        return
    room = request.getfixturevalue("conformance_room")
    async with kubernetes(room) as ready:
        yield ready


@pytest.fixture(scope="session")
def conformance_room(kube: Kube, crd: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Room]:
    """One namespace for all, their objects have names of their own; no operator writes into them."""
    with resting_operator(kube):
        yield from make_room(kube, "conformance", tmp_path_factory.mktemp("conformance"))


@contextlib.asynccontextmanager
async def local(directory: Path) -> AsyncIterator[Rig]:
    cluster = LocalCluster(directory / "state")
    controllers = asyncio.create_task(cluster.run())
    try:
        yield Rig(cluster, "default")
    finally:
        while cluster.has_processes():
            cluster.kill_pods()
            await asyncio.sleep(0.02)
        controllers.cancel()
        await cluster.close()


@contextlib.asynccontextmanager
async def kubernetes(room: Room) -> AsyncIterator[Rig]:
    from devcluster import images
    from sftjob_operator.cluster.connection import connect
    from sftjob_operator.cluster.kubernetes import KubernetesCluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KUBECONFIG", str(room.kube.kubeconfig))
        cluster = KubernetesCluster(await connect())
    path = {"name": "PATH", "value": f"{ROOT}/.venv/bin:/usr/bin:/bin"}
    pod = room.overlay["spec"]
    mounts = tuple(pod["containers"][0]["volumeMounts"])
    try:
        yield Rig(cluster, room.namespace, images.THIN, (path,), tuple(pod["volumes"]), mounts, seconds=90)
    finally:
        await cluster.close()
