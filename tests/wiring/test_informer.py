"""Kopf as the informer, against a mock API server: what reaches the queue and the view, and that Kopf writes
nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import kmock as km
import kopf
import pytest

from sftjob_operator import handlers
from sftjob_operator.cluster.base import Key, ref_of
from sftjob_operator.cluster.connection import Connection, static_token
from sftjob_operator.cluster.kubernetes import KubernetesCluster
from sftjob_operator.cluster.view import IndexView
from sftjob_operator.resync import hide_ghosts
from sftjob_operator.workqueue import WorkQueue

SFTJOBS, JOBS = "sftjob.dev/v1alpha1/sftjobs", "batch/v1/jobs"
VERBS = {"get", "list", "watch", "patch", "create", "delete"}
LABELS = {"sftjob.dev/job-name": "bot", "app.kubernetes.io/managed-by": "sftjob-operator"}


def sftjob(name: str = "bot", **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "sftjob.dev/v1alpha1",
        "kind": "SFTJob",
        "metadata": {
            "namespace": "team",
            "name": name,
            "uid": f"uid-{name}",
            "resourceVersion": "1",
            "managedFields": [{"manager": "kubectl"}],
            "annotations": {"kubectl.kubernetes.io/last-applied-configuration": "{}", "kept": "yes"},
        },
        "spec": spec,
    }


def job(name: str = "bot-1", labels: dict[str, str] | None = None) -> dict[str, Any]:
    metadata = {"namespace": "team", "name": name, "uid": f"uid-{name}", "resourceVersion": "1"}
    metadata["labels"] = LABELS if labels is None else labels  # type: ignore[assignment]
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": {}}


class Wiring:
    """A running informer."""

    def __init__(self, server: km.KubernetesEmulator) -> None:
        self.server = server
        self.connection = Connection(server=str(server.url).rstrip("/"), token=static_token("t"))
        self.view, self.queue = IndexView(), WorkQueue[Key]()
        self.cluster = KubernetesCluster(self.connection)

    async def key(self) -> Key:
        """The next key, taken and done."""
        async with asyncio.timeout(20):
            key = await self.queue.get()
        self.queue.done(key)
        return key

    async def until(self, shown: Any) -> None:
        """Until the view satisfies `shown`; every change of the view also comes as a key."""
        async with asyncio.timeout(20):
            while not shown():
                await self.key()


@contextlib.asynccontextmanager
async def informing(server: km.KubernetesEmulator) -> AsyncIterator[Wiring]:
    wiring = Wiring(server)
    settings = kopf.OperatorSettings()
    handlers.configure(settings)
    stop = asyncio.Event()
    operator = asyncio.create_task(
        kopf.operator(
            registry=handlers.registry(wiring.view, wiring.queue, wiring.connection),
            settings=settings,
            clusterwide=True,
            stop_flag=stop,
        )
    )
    try:
        yield wiring
    finally:
        await wiring.cluster.close()
        stop.set()
        async with asyncio.timeout(20):
            await operator


@pytest.fixture
def server(kmock: km.KubernetesEmulator) -> km.KubernetesEmulator:
    for resource, kind in ((SFTJOBS, "SFTJob"), (JOBS, "Job")):
        kmock.resources[resource] = km.ResourceInfo(namespaced=True, kind=kind, verbs=VERBS)
    for resource in ("v1/namespaces", "apiextensions.k8s.io/v1/customresourcedefinitions"):
        kmock.resources[resource] = km.ResourceInfo(namespaced=False, verbs=VERBS)
    return kmock


async def test_what_is_there_at_the_start_is_listed_and_queued(server: km.KubernetesEmulator) -> None:
    server.objects[SFTJOBS, "team", "bot"] = sftjob(epochs=1)
    async with informing(server) as wiring:
        assert await wiring.key() == Key("team", "bot")
        body = wiring.view.sftjob(Key("team", "bot"))
        assert body is not None
        assert body["spec"] == {"epochs": 1}
        assert wiring.view.keys() == [Key("team", "bot")]


async def test_the_view_keeps_no_managed_fields(server: km.KubernetesEmulator) -> None:
    server.objects[SFTJOBS, "team", "bot"] = sftjob()
    async with informing(server) as wiring:
        await wiring.key()
        body = wiring.view.sftjob(Key("team", "bot"))
        assert body is not None
        assert "managedFields" not in body["metadata"]
        assert body["metadata"]["annotations"] == {"kept": "yes"}


async def test_a_job_brings_up_the_key_of_its_sftjob_and_is_shown_under_it(
    server: km.KubernetesEmulator,
) -> None:
    async with informing(server) as wiring:
        await wiring.cluster.create(job())
        await wiring.until(lambda: wiring.view.jobs(Key("team", "bot")))
        assert [body["metadata"]["name"] for body in wiring.view.jobs(Key("team", "bot"))] == ["bot-1"]


async def test_a_deleted_sftjob_leaves_the_view_and_its_key_comes_once_more(
    server: km.KubernetesEmulator,
) -> None:
    async with informing(server) as wiring:
        created = await wiring.cluster.create(sftjob())
        await wiring.until(lambda: wiring.view.keys())
        await wiring.cluster.delete(ref_of(created))
        await wiring.until(lambda: not wiring.view.keys())


async def test_a_job_without_our_label_is_nobodys(server: km.KubernetesEmulator) -> None:
    server.objects[JOBS, "team", "other"] = job("other", labels={"app": "x"})
    server.objects[SFTJOBS, "team", "bot"] = sftjob()
    async with informing(server) as wiring:
        assert await wiring.key() == Key("team", "bot")
        assert wiring.view.jobs(Key("team", "bot")) == []
        assert wiring.queue.depth == 0


async def test_only_our_jobs_are_asked_of_the_server(server: km.KubernetesEmulator) -> None:
    server.objects[SFTJOBS, "team", "bot"] = sftjob()
    async with informing(server) as wiring:
        await wiring.key()
        await wiring.cluster.create(job())
        await wiring.until(lambda: wiring.view.jobs(Key("team", "bot")))
        asked = [request.params for request in server["get"] if str(request.url.path).endswith("/jobs")]
    assert len(asked) >= 2, "one list and one watch"
    assert {params.get("labelSelector") for params in asked} == {handlers.JOB_SELECTOR}


async def test_kopf_itself_writes_nothing_into_any_object(server: km.KubernetesEmulator) -> None:
    for number in range(20):
        server.objects[SFTJOBS, "team", f"bot-{number}"] = sftjob(f"bot-{number}")
    async with informing(server) as wiring:
        seen: set[Key] = set()
        while len(seen) < 20:
            seen.add(await wiring.key())
        await wiring.cluster.create(job())
        await wiring.until(lambda: wiring.view.jobs(Key("team", "bot")))
    for method in ("patch", "put", "delete"):
        assert len(server[method]) == 0
    assert len(server["post"]) == 1, "the Job this test has created"


async def test_what_went_unnoticed_while_the_watch_was_broken_is_hidden(
    server: km.KubernetesEmulator,
) -> None:
    server.objects[SFTJOBS, "team", "bot"] = sftjob()
    server.objects[SFTJOBS, "team", "stays"] = sftjob("stays")
    async with informing(server) as wiring:
        await wiring.until(lambda: len(wiring.view.keys()) == 2)
        del server.objects[SFTJOBS, "team", "bot"]  # no watch event tells of it
        assert len(wiring.view.keys()) == 2
        await hide_ghosts(wiring.cluster, wiring.view, ())
        assert wiring.view.keys() == [Key("team", "stays")]


def test_every_setting_that_differs_from_kopfs_default_is_deliberate() -> None:
    settings = kopf.OperatorSettings()
    handlers.configure(settings)
    assert settings.scanning.disabled
    assert settings.peering.standalone
    assert settings.watching.label_selectors["jobs"] == (
        "app.kubernetes.io/managed-by=sftjob-operator,sftjob.dev/job-name"
    )
    assert settings.watching.chunk_size == 500
    assert settings.networking.request_timeout == 30
    assert not settings.posting.enabled
    assert settings.queueing.worker_limit is None, "a limit below the number of objects dead-locks indexing"
    assert settings.queueing.exit_timeout <= 1


async def test_kopf_signs_on_with_our_credentials() -> None:
    info = await handlers.login_to(
        Connection("https://api:6443", static_token("secret"), ca_path="/ca.crt", in_cluster=True)
    )
    assert (info.server, info.token, info.ca_path, info.insecure) == (
        "https://api:6443",
        "secret",
        "/ca.crt",
        False,
    )
