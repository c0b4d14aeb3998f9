"""KubernetesCluster against a scripted HTTP server: what it asks, and what it makes of the answers."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from sft_trainer.config import METRICS_PORT
from sftjob_operator.cluster import http
from sftjob_operator.cluster.base import (
    AlreadyExists,
    ClusterError,
    Conflict,
    Event,
    NotFound,
    Ref,
    Rejected,
)
from sftjob_operator.cluster.connection import Connection, NoCluster, connect, file_token, static_token
from sftjob_operator.cluster.kubernetes import PROGRESS_BYTES, KubernetesCluster, address, collection

JOB = Ref("batch/v1", "Job", "team", "bot-1")
SFTJOB = Ref("sftjob.dev/v1alpha1", "SFTJob", "team", "bot")
POD = {"metadata": {"namespace": "team", "name": "bot-1-0"}, "status": {"podIP": "127.0.0.1"}}
MANIFEST = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"namespace": "team", "name": "bot-1"}}


class Script:
    """Answers in order (the last one for ever) and remembers what was asked."""

    def __init__(self) -> None:
        self.answers: list[web.Response | Callable[[], web.Response]] = []
        self.asked: list[tuple[str, str, dict[str, str], Any, Any]] = []
        self.counted: list[tuple[str, str]] = []

    def say(self, code: int, body: Any = None, **headers: str) -> None:
        def make() -> web.Response:
            return web.json_response(
                body or {}, status=code, headers={k.replace("_", "-"): v for k, v in headers.items()}
            )

        self.answers.append(make)

    def drop(self) -> None:
        def make() -> web.Response:
            raise ConnectionResetError

        self.answers.append(make)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        self.asked.append(
            (
                request.method,
                request.path,
                dict(request.query),
                json.loads(body) if body else None,
                request.headers,
            )
        )
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        try:
            return answer() if callable(answer) else answer
        except ConnectionResetError:
            assert request.transport is not None
            request.transport.close()
            return web.Response()


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Script:
    monkeypatch.setattr(http, "RETRY_DELAYS", (0.0, 0.0))
    return Script()


@pytest.fixture
async def cluster(script: Script) -> AsyncIterator[KubernetesCluster]:
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", script.handle)
    async with TestServer(app) as server:
        connection = Connection(str(server.make_url("")).rstrip("/"), static_token("secret"))
        made = KubernetesCluster(connection, lambda verb, code: script.counted.append((verb, code)))
        yield made
        await made.close()


def status(reason: str, message: str) -> dict[str, str]:
    return {"kind": "Status", "reason": reason, "message": message}


async def test_every_request_is_signed_and_names_its_field_manager(
    script: Script, cluster: KubernetesCluster
) -> None:
    script.say(201, MANIFEST)
    await cluster.create(MANIFEST, dry_run=True)
    method, path, query, body, headers = script.asked[0]
    assert (method, path) == ("POST", "/apis/batch/v1/namespaces/team/jobs")
    assert query == {"fieldManager": "sftjob-operator", "dryRun": "All"}
    assert body == MANIFEST
    assert headers["Authorization"] == "Bearer secret"


async def test_apply_is_a_forced_server_side_apply(script: Script, cluster: KubernetesCluster) -> None:
    script.say(200, MANIFEST)
    await cluster.apply(MANIFEST)
    method, path, query, _, headers = script.asked[0]
    assert (method, path) == ("PATCH", "/apis/batch/v1/namespaces/team/jobs/bot-1")
    assert query == {"fieldManager": "sftjob-operator", "force": "true"}
    assert headers["Content-Type"] == "application/apply-patch+yaml"


async def test_a_status_write_replaces_the_whole_status_of_that_very_object(
    script: Script, cluster: KubernetesCluster
) -> None:
    script.say(200, {})
    await cluster.patch_status(SFTJOB, {"phase": "Running"}, uid="u1", generation=3)
    method, path, _, body, headers = script.asked[0]
    assert (method, path) == ("PATCH", "/apis/sftjob.dev/v1alpha1/namespaces/team/sftjobs/bot/status")
    assert headers["Content-Type"] == "application/json-patch+json"
    assert body == [
        {"op": "test", "path": "/metadata/uid", "value": "u1"},
        {"op": "test", "path": "/metadata/generation", "value": 3},
        {"op": "add", "path": "/status", "value": {"phase": "Running"}},
    ]


async def test_a_status_write_to_a_namesake_is_not_found(script: Script, cluster: KubernetesCluster) -> None:
    script.say(422, status("Invalid", "the server rejected our request due to an error in our request"))
    script.say(200, {"metadata": {"uid": "u2"}})
    with pytest.raises(NotFound):
        await cluster.patch_status(SFTJOB, {}, uid="u1")


async def test_a_status_of_an_older_spec_is_a_conflict(script: Script, cluster: KubernetesCluster) -> None:
    script.say(422, status("Invalid", "the server rejected our request due to an error in our request"))
    script.say(200, {"metadata": {"uid": "u1", "generation": 4}})
    with pytest.raises(Conflict):
        await cluster.patch_status(SFTJOB, {}, uid="u1", generation=3)


async def test_a_status_the_schema_refuses_is_rejected_with_the_servers_words(
    script: Script, cluster: KubernetesCluster
) -> None:
    script.say(422, status("Invalid", "status.restarts: must be an integer"))
    script.say(200, {"metadata": {"uid": "u1"}})
    with pytest.raises(Rejected, match=r"status\.restarts: must be an integer"):
        await cluster.patch_status(SFTJOB, {}, uid="u1")


@pytest.mark.parametrize(
    ("code", "reason", "expected"),
    [
        (400, "BadRequest", Rejected),
        (403, "Forbidden", Rejected),
        (404, "NotFound", NotFound),
        (409, "AlreadyExists", AlreadyExists),
        (409, "Conflict", Conflict),
        (422, "Invalid", Rejected),
        (302, "Found", ClusterError),
        (401, "Unauthorized", ClusterError),
        (429, "TooManyRequests", ClusterError),
        (500, "InternalError", ClusterError),
        (504, "Timeout", ClusterError),
    ],
)
async def test_a_refusal_becomes_the_right_exception(
    script: Script, cluster: KubernetesCluster, code: int, reason: str, expected: type[Exception]
) -> None:
    script.say(code, status(reason, "in the server's words"))
    with pytest.raises(ClusterError, match="in the server's words") as caught:
        await cluster.create(MANIFEST)
    assert type(caught.value) is expected


async def test_what_passes_by_itself_is_tried_again(script: Script, cluster: KubernetesCluster) -> None:
    script.say(503)
    script.drop()
    script.say(200, MANIFEST)
    assert await cluster.create(MANIFEST) == MANIFEST
    assert script.counted == [("POST", "503"), ("POST", "error"), ("POST", "200")]


async def test_after_three_tries_it_is_the_queues_turn(script: Script, cluster: KubernetesCluster) -> None:
    script.say(500, status("InternalError", "etcd is away"))
    with pytest.raises(ClusterError, match="etcd is away"):
        await cluster.create(MANIFEST)
    assert len(script.asked) == 3


async def test_a_refusal_is_not_tried_again(script: Script, cluster: KubernetesCluster) -> None:
    script.say(422, status("Invalid", "no"))
    with pytest.raises(Rejected):
        await cluster.create(MANIFEST)
    assert len(script.asked) == 1


async def test_an_unreachable_server_is_a_cluster_error(script: Script) -> None:
    cluster = KubernetesCluster(Connection("http://127.0.0.1:1", static_token(None)))
    with pytest.raises(
        ClusterError, match=r"GET /apis/batch/v1/namespaces/team/jobs/bot-1: ClientConnectorError"
    ):
        await cluster.get(JOB)
    await cluster.close()


async def test_deleting_names_the_uid_and_a_vanished_object_is_fine(
    script: Script, cluster: KubernetesCluster
) -> None:
    script.say(404, status("NotFound", "gone"))
    await cluster.delete(JOB, uid="u1")
    assert script.asked[0][3]["preconditions"] == {"uid": "u1"}
    assert script.asked[0][3]["propagationPolicy"] == "Background"
    script.answers.clear()
    script.say(409, status("Conflict", "the UID in the precondition does not match"))
    await cluster.delete(JOB, uid="u1")
    script.answers.clear()
    script.say(200, {})
    await cluster.delete(JOB, uid="u1", foreground=True)
    assert script.asked[-1][3]["propagationPolicy"] == "Foreground"


async def test_secrets_are_read_without_their_content(script: Script, cluster: KubernetesCluster) -> None:
    script.say(200, {"metadata": {"name": "token"}})
    await cluster.get(Ref("v1", "Secret", "team", "token"))
    assert "PartialObjectMetadata" in script.asked[0][4]["Accept"]


async def test_a_long_list_is_read_page_by_page(script: Script, cluster: KubernetesCluster) -> None:
    script.say(200, {"metadata": {"continue": "next"}, "items": [{"n": 1}]})
    script.say(200, {"metadata": {}, "items": [{"n": 2}]})
    assert await cluster.list("v1", "Pod", "team", {"b": "2", "a": "1"}) == [{"n": 1}, {"n": 2}]
    assert script.asked[0][2]["labelSelector"] == "a=1,b=2"
    assert script.asked[1][2]["continue"] == "next"


async def test_of_nodes_only_the_names_and_labels_are_read_and_no_cordoned_ones(
    script: Script, cluster: KubernetesCluster
) -> None:
    script.say(200, {"metadata": {}, "items": [{"metadata": {"name": "n"}}]})
    assert await cluster.list("v1", "Node", "", {}) == [{"metadata": {"name": "n"}}]
    assert script.asked[0][2]["fieldSelector"] == "spec.unschedulable=false"
    assert "as=PartialObjectMetadataList" in script.asked[0][4]["Accept"]


async def test_a_lost_event_is_no_reason_to_stop(script: Script, cluster: KubernetesCluster) -> None:
    script.say(403, status("Forbidden", "no"))
    regarding = {
        "apiVersion": SFTJOB.api,
        "kind": "SFTJob",
        "metadata": {"namespace": "team", "name": "bot", "uid": "u"},
    }
    await cluster.emit_event(regarding, Event("Warning", "ImagePull", "x" * 5000))
    body = script.asked[0][3]
    assert body["involvedObject"]["uid"] == "u"
    assert len(body["message"]) == 1024


async def test_progress_outside_the_cluster_goes_through_the_pod_proxy(
    script: Script, cluster: KubernetesCluster
) -> None:
    script.say(200, {"step": 1})
    assert await cluster.fetch_progress(POD) == b'{"step": 1}'
    assert script.asked[0][1] == "/api/v1/namespaces/team/pods/bot-1-0:9400/proxy/progress"


async def test_progress_that_redirects_is_not_followed(script: Script, cluster: KubernetesCluster) -> None:
    script.say(302, {}, Location="/api/v1/secrets")
    assert await cluster.fetch_progress(POD) is None
    assert len(script.asked) == 1


async def test_progress_that_is_too_long_is_not_read(script: Script, cluster: KubernetesCluster) -> None:
    script.say(200, "x" * PROGRESS_BYTES)
    assert await cluster.fetch_progress(POD) is None


async def test_inside_the_cluster_a_pod_is_asked_without_our_token_and_only_by_an_address(
    script: Script,
) -> None:
    cluster = KubernetesCluster(Connection("http://127.0.0.1:1", static_token("secret"), in_cluster=True))
    assert await cluster.fetch_progress(POD) is None  # nobody listens on port 9400 here
    assert await cluster.fetch_progress({**POD, "status": {"podIP": "evil.example/#"}}) is None
    assert await cluster.fetch_progress({**POD, "status": {}}) is None
    await cluster.close()


async def test_no_connection_to_a_pod_is_kept_open_for_the_next_question() -> None:
    heard: list[str] = []

    async def progress(request: web.Request) -> web.Response:
        heard.append(request.headers["Connection"])
        assert "Authorization" not in request.headers
        return web.Response(text="{}")

    app = web.Application()
    app.add_routes([web.get("/progress", progress)])
    runner = web.AppRunner(app, shutdown_timeout=0.2)
    await runner.setup()
    cluster = KubernetesCluster(Connection("http://127.0.0.1:1", static_token("secret"), in_cluster=True))
    try:
        await web.TCPSite(runner, "127.83.70.84", METRICS_PORT).start()
        assert await cluster.fetch_progress({**POD, "status": {"podIP": "127.83.70.84"}}) == b"{}"
    finally:
        await cluster.close()
        await runner.cleanup()
    assert heard == ["close"]


@pytest.mark.parametrize(("code", "expected"), [(200, True), (404, False)])
async def test_whether_the_crd_is_there(
    script: Script, cluster: KubernetesCluster, code: int, expected: bool
) -> None:
    script.say(code, {"resources": [{"name": "sftjobs/status"}, {"name": "sftjobs"}]})
    assert await cluster.serves("sftjob.dev/v1alpha1", "sftjobs") is expected


def test_paths_of_every_kind_we_use() -> None:
    assert collection(Ref("v1", "Node", "", "")) == "/api/v1/nodes"
    assert (
        address(Ref("v1", "PersistentVolumeClaim", "a", "b"))
        == "/api/v1/namespaces/a/persistentvolumeclaims/b"
    )
    assert address(SFTJOB) == "/apis/sftjob.dev/v1alpha1/namespaces/team/sftjobs/bot"
    assert address(Ref("v1", "Pod", "a", "../x")) == "/api/v1/namespaces/a/pods/..%2Fx"


# ------------------------------------------------------------------ signing on


async def test_a_rotated_token_is_read_again_after_a_minute(tmp_path: Any) -> None:
    now = 0.0
    path = tmp_path / "token"
    path.write_text("first\n")
    token = file_token(path, lambda: now)
    assert await token() == "first"
    path.write_text("second\n")
    now = 59.0
    assert await token() == "first"
    now = 61.0
    assert await token() == "second"


async def test_without_any_cluster_the_error_says_what_was_looked_for(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("KUBECONFIG", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(NoCluster, match="KUBECONFIG is not set"):
        await connect()


async def test_a_kubeconfig_gives_server_and_token(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "config"
    path.write_text(
        """
apiVersion: v1
kind: Config
current-context: c
contexts: [{name: c, context: {cluster: k, user: u}}]
clusters: [{name: k, cluster: {server: "https://api.example:6443", insecure-skip-tls-verify: true}}]
users: [{name: u, user: {token: tkn}}]
"""
    )
    monkeypatch.setenv("KUBECONFIG", str(path))
    connection = await connect()
    assert connection.server == "https://api.example:6443"
    assert await connection.token() == "tkn"
    assert not connection.verify
    assert not connection.in_cluster
    assert (connection.context, connection.namespace) == ("c", "default")


async def test_a_context_brings_its_own_server_and_namespace(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the kubeconfig is two files, as kubectl merges them."""
    for name, more in (("a", ""), ("b", ", namespace: team")):
        (tmp_path / name).write_text(
            f"""
apiVersion: v1
kind: Config
current-context: {name}
contexts: [{{name: {name}, context: {{cluster: {name}, user: u{more}}}}}]
clusters: [{{name: {name}, cluster: {{server: "https://{name}.example"}}}}]
users: [{{name: u, user: {{token: t}}}}]
"""
        )
    monkeypatch.setenv("KUBECONFIG", f"{tmp_path / 'a'}:{tmp_path / 'b'}")
    chosen = await connect(context="b")
    assert (chosen.server, chosen.context, chosen.namespace) == ("https://b.example", "b", "team")
    assert (await connect(kubeconfig=str(tmp_path / "a"))).server == "https://a.example"
    with pytest.raises(NoCluster, match="context c: "):
        await connect(context="c")


async def test_the_token_of_an_exec_plugin_is_renewed_when_it_expires(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    plugin = tmp_path / "plugin"
    plugin.write_text(
        """#!/bin/sh
echo x >> "$0.calls"
echo '{"apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential", "status":'
echo '{"token": "t'$(wc -l < "$0.calls")'", "expirationTimestamp": "2020-01-01T00:00:00Z"}}'
"""
    )
    plugin.chmod(0o755)
    path = tmp_path / "config"
    path.write_text(
        f"""
apiVersion: v1
kind: Config
current-context: c
contexts: [{{name: c, context: {{cluster: k, user: u}}}}]
clusters: [{{name: k, cluster: {{server: "https://a.example", proxy-url: "http://p:1", tls-server-name: b.example}}}}]
users: [{{name: u, user: {{exec: {{apiVersion: client.authentication.k8s.io/v1, command: {plugin}}}}}}}]
"""
    )
    monkeypatch.setenv("KUBECONFIG", str(path))
    connection = await connect()
    assert (connection.proxy, connection.tls_server_name) == ("http://p:1", "b.example")
    first, second = await connection.token(), await connection.token()
    assert (first, second) == ("t2", "t3")


async def test_a_broken_kubeconfig_is_named(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "missing"))
    with pytest.raises(NoCluster, match="missing"):
        await connect()
