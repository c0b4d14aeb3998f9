"""KubernetesClient against a small HTTP server: what a person's commands ask, and that no pod of theirs stays."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from sftjob_operator.cluster.base import ClusterError, Ref
from sftjob_operator.cluster.connection import Connection, static_token
from sftjob_operator.cluster.person import ATTACH, KubernetesClient

NAMED = {"namespace": "team", "name": "bot-read-1"}
POD = {"apiVersion": "v1", "kind": "Pod", "metadata": NAMED}
PODS = "/api/v1/namespaces/team/pods"


def at(second: int) -> str:
    """A time as a kubelet writes it."""
    return f"2030-01-01T00:00:{second:02d}.000000000+02:00"


class Server:
    """One pod, its log, and an attach that answers in capitals."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, dict[str, str]]] = []
        self.pod: dict[str, Any] | None = None
        self.status: dict[str, Any] = {"phase": "Running"}
        self.attach_code = 200
        self.logs = [(f"{at(1)} first\n{at(2)} sec".encode(), f"ond\n{at(3)} last without end".encode())]

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.asked.append((request.method, request.path, dict(request.query)))
        if request.path.endswith("/log"):
            return await self._log(request)
        if request.path.endswith("/attach"):
            if self.attach_code != 200:
                return web.json_response({"reason": "Forbidden", "message": "no"}, status=self.attach_code)
            return await self._attach(request)
        if request.method == "POST":
            self.pod = {**await request.json(), "status": self.status}
            self.pod["metadata"]["uid"] = "u1"
            return web.json_response(self.pod, status=201)
        if request.method == "DELETE":
            assert (await request.json())["preconditions"] == {"uid": "u1"}
            self.pod = None
            return web.json_response({})
        if request.path.endswith("/events"):
            moments = ["2030-01-01T00:00:02Z", "2030-01-01T00:00:01Z"]
            return web.json_response({"items": [{"metadata": {}, "lastTimestamp": one} for one in moments]})
        return web.json_response(self.pod) if self.pod else web.json_response({}, status=404)

    async def _log(self, request: web.Request) -> web.StreamResponse:
        answer = web.StreamResponse()
        await answer.prepare(request)
        for part in self.logs.pop(0):
            await answer.write(part)
            await asyncio.sleep(0)
        if not self.logs:
            self.status = {"phase": "Succeeded"}
            self.pod = self.pod and {**self.pod, "status": self.status}
        return answer

    async def _attach(self, request: web.Request) -> web.StreamResponse:
        socket = web.WebSocketResponse(protocols=(ATTACH,))
        await socket.prepare(request)
        await socket.send_bytes(b"\x01")
        async for message in socket:
            said = message.data[1:].decode().upper()
            await socket.send_bytes(b"\x02a warning\n")
            await socket.send_bytes(b"\x01" + said[:2].encode())  # lines come in pieces
            await socket.send_bytes(b"\x01" + said[2:].encode())
            if said == "LEAVE\n":
                break
        await socket.close()
        return socket


@pytest.fixture
def server() -> Server:
    return Server()


@pytest.fixture
async def client(server: Server) -> AsyncIterator[KubernetesClient]:
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", server.handle)
    async with TestServer(app) as running:
        url = str(running.make_url("")).rstrip("/")
        made = KubernetesClient(Connection(url, static_token("secret")), start_seconds=1.0)
        yield made
        await made.close()


async def test_events_are_selected_by_the_server_and_sorted(server: Server, client: KubernetesClient):
    found = await client.events_about(Ref("batch/v1", "Job", "team", "bot-1"))
    assert [one["lastTimestamp"][-2] for one in found] == ["1", "2"]
    assert server.asked[0][2] == {"fieldSelector": "involvedObject.kind=Job,involvedObject.name=bot-1"}


async def test_a_log_comes_in_lines(server: Server, client: KubernetesClient):
    lines = [line async for line in client.log(POD, 5, follow=True)]
    assert lines == ["first", "second", "last without end"]
    assert server.asked[0][1:] == (
        f"{PODS}/bot-read-1/log",
        {"container": "trainer", "follow": "true", "timestamps": "true", "tailLines": "5"},
    )


async def test_a_log_that_breaks_off_is_taken_up_where_it_was(server: Server, client: KubernetesClient):
    running = {"containerStatuses": [{"name": "trainer", "state": {"running": {}}}]}
    server.pod = {**POD, "status": running}
    server.logs = [
        (f"{at(1)} first\n{at(2)} second\n".encode(),),
        (f"{at(2)} second\n{at(3)} third\na word of the kubelet\n".encode(),),
    ]
    lines = [line async for line in client.log(POD, 5, follow=True)]
    assert lines == ["first", "second", "third", "a word of the kubelet"]
    again = [query for _, path, query in server.asked if path.endswith("/log")][1]
    assert again == {"container": "trainer", "follow": "true", "timestamps": "true", "sinceTime": at(2)}


async def test_an_attached_pod_is_talked_to_in_lines_and_removed(server: Server, client: KubernetesClient):
    async with client.attached(POD) as duplex:
        assert server.pod is not None
        await duplex.send("hello")
        await duplex.send("leave")
        assert [line async for line in duplex.lines()] == ["HELLO", "LEAVE"]
        assert duplex.said() == "a warning\na warning"
    assert server.pod is None
    attach = next(query for _, path, query in server.asked if path.endswith("/attach"))
    assert attach == {"container": "trainer", "stdin": "true", "stdout": "true", "stderr": "true"}


async def test_a_pod_is_removed_when_the_person_leaves_in_the_middle(
    server: Server, client: KubernetesClient
):
    entered = asyncio.Event()

    async def talk() -> None:
        async with client.attached(POD) as duplex:
            entered.set()
            async for _ in duplex.lines():
                pass

    task = asyncio.create_task(talk())
    await entered.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert server.pod is None


@pytest.mark.parametrize(
    ("status", "words"),
    [
        ({"phase": "Failed", "message": "evicted"}, "ended at once: evicted"),
        (
            {
                "phase": "Pending",
                "containerStatuses": [
                    {"name": "trainer", "image": "x:1", "state": {"waiting": {"reason": "ErrImagePull"}}}
                ],
            },
            "does not start: pod bot-read-1: image x:1: ErrImagePull",
        ),
        (
            {
                "phase": "Pending",
                "conditions": [{"type": "PodScheduled", "status": "False", "message": "0/3 nodes: no room"}],
            },
            "does not start: pod bot-read-1: 0/3 nodes: no room",
        ),
    ],
)
async def test_a_pod_that_does_not_start_is_removed_and_says_why(
    server: Server, client: KubernetesClient, status: dict[str, Any], words: str
):
    server.status = status
    with pytest.raises(ClusterError, match=words):
        async with client.attached(POD):
            pass
    assert server.pod is None


async def test_who_may_not_attach_is_told_so_and_leaves_no_pod(server: Server, client: KubernetesClient):
    server.attach_code = 403
    with pytest.raises(ClusterError):
        async with client.attached(POD):
            pass
    assert server.pod is None


async def test_the_persons_writes_have_a_name_of_their_own(server: Server, client: KubernetesClient):
    await client.create(POD)
    assert server.asked[0][2] == {"fieldManager": "sftjob"}
    assert json.loads(json.dumps(server.pod))["metadata"]["name"] == "bot-read-1"
