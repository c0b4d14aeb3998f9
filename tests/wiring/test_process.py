"""The operator as a process against a mock API server: settings, leadership, and how it ends."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import kmock as km
import pytest

import sft_trainer
import sftjob_operator

pytestmark = pytest.mark.processes

LEASES = "coordination.k8s.io/v1/leases"
SOURCES = [str(Path(module.__file__ or "").parent.parent) for module in (sftjob_operator, sft_trainer)]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def environment(kubeconfig: Path | None = None, **settings: str) -> dict[str, str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("SFTJOB_")}
    clean.pop("KUBECONFIG", None)
    clean |= {"PYTHONPATH": os.pathsep.join(SOURCES)}
    if kubeconfig is not None:
        clean["KUBECONFIG"] = str(kubeconfig)
    return clean | {f"SFTJOB_OPERATOR_{name.upper()}": value for name, value in settings.items()}


async def started(env: dict[str, str]) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "sftjob_operator", env=env, stderr=asyncio.subprocess.PIPE
    )


class Running:
    """An operator process that leads or stands by."""

    def __init__(self, server: km.KubernetesEmulator, process: asyncio.subprocess.Process, port: int) -> None:
        self.server, self.process, self._url = server, process, f"http://127.0.0.1:{port}"
        self._log = ""

    def holder(self) -> str | None:
        for lease in self.server.objects.values():
            return str(lease["spec"]["holderIdentity"])
        return None

    async def get(self, path: str) -> str:
        async with aiohttp.ClientSession() as session, session.get(self._url + path) as answer:
            assert answer.status == 200
            return await answer.text()

    async def log_line(self, words: str) -> str:
        """The next line of the log that contains `words`."""
        assert self.process.stderr is not None
        async with asyncio.timeout(120):
            while True:
                line = (await self.process.stderr.readline()).decode()
                self._log += line
                assert line, f"the log ended before {words!r}:\n{self._log}"
                if words in line:
                    return line

    async def exit_code(self) -> int:
        async with asyncio.timeout(60):
            return await self.process.wait()


@contextlib.asynccontextmanager
async def running(server: km.KubernetesEmulator, tmp_path: Path, **settings: str) -> AsyncIterator[Running]:
    kubeconfig, port = tmp_path / "kubeconfig", free_port()
    kubeconfig.write_text(
        f"""
apiVersion: v1
kind: Config
current-context: c
contexts: [{{name: c, context: {{cluster: k, user: u}}}}]
clusters: [{{name: k, cluster: {{server: "{str(server.url).rstrip("/")}"}}}}]
users: [{{name: u, user: {{token: t}}}}]
"""
    )
    env = environment(
        kubeconfig,
        http_host="127.0.0.1",
        http_port=str(port),
        lease_namespace="system",
        identity="me",
        **settings,
    )
    process = await started(env)
    try:
        yield Running(server, process, port)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


@pytest.fixture
def server(kmock: km.KubernetesEmulator) -> km.KubernetesEmulator:
    for resource, namespaced in (
        ("sftjob.dev/v1alpha1/sftjobs", True),
        ("batch/v1/jobs", True),
        (LEASES, True),
        ("v1/namespaces", False),
        ("apiextensions.k8s.io/v1/customresourcedefinitions", False),
    ):
        kmock.resources[resource] = km.ResourceInfo(
            namespaced=namespaced, verbs={"get", "list", "watch", "patch", "create"}
        )
    kmock.objects[LEASES, "system", "sftjob-operator"] = lease("")  # released; kmock gives no resourceVersion
    return kmock


def lease(holder: str) -> dict[str, Any]:
    return {
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": {"namespace": "system", "name": "sftjob-operator", "resourceVersion": "1"},
        "spec": {"holderIdentity": holder, "leaseDurationSeconds": 3600, "renewTime": "2026-01-01T00:00:00Z"},
    }


async def test_it_leads_serves_and_on_sigterm_releases_the_lease_and_ends_with_0(
    server: km.KubernetesEmulator, tmp_path: Path
) -> None:
    async with running(server, tmp_path) as operator:
        await operator.log_line("leading as me")
        assert operator.holder() == "me"
        assert "sftjob_operator_leader 1.0" in await operator.get("/metrics")
        async with asyncio.timeout(60):
            while "sftjob_operator_watching 1.0" not in await operator.get("/metrics"):
                await asyncio.sleep(0.05)
        operator.process.send_signal(signal.SIGTERM)
        await operator.log_line("lease released")
        assert await operator.exit_code() == 0
        assert operator.holder() == ""


async def test_a_standby_is_ready_but_watches_nothing(server: km.KubernetesEmulator, tmp_path: Path) -> None:
    server.objects[LEASES, "system", "sftjob-operator"] = lease("other")
    async with running(server, tmp_path, log_level="DEBUG") as operator:
        async with asyncio.timeout(120):
            while not server["get"]:
                await asyncio.wait({asyncio.create_task(operator.process.wait())}, timeout=0.1)
        assert await operator.get("/readyz") == "ok"
        page = await operator.get("/metrics")
        assert "sftjob_operator_leader 0.0" in page
        assert "sftjob_operator_watching 0.0" in page
        operator.process.send_signal(signal.SIGTERM)
        assert await operator.exit_code() == 0
        assert operator.holder() == "other"
        assert {request.url.path.rsplit("/", 2)[-2] for request in server["get"]} == {"leases"}


async def test_when_the_lease_is_stolen_it_ends_at_once_with_1(
    server: km.KubernetesEmulator, tmp_path: Path
) -> None:
    async with running(server, tmp_path) as operator:
        await operator.log_line("leading as me")
        server.objects[LEASES, "system", "sftjob-operator"] = lease("thief")
        await operator.log_line("the Lease was taken by thief")
        assert await operator.exit_code() == 1
        assert operator.holder() == "thief"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"workers": "many"}, "SFTJOB_OPERATOR_WORKERS='many'"),
        ({"log_format": "xml"}, "SFTJOB_OPERATOR_LOG_FORMAT='xml'"),
        ({"gpu_memory": "80 gigs"}, "80 gigs"),
        ({}, "no cluster: KUBECONFIG is not set"),
    ],
    ids=["workers", "log format", "gpu memory", "no cluster"],
)
async def test_what_is_set_wrong_is_named_in_one_line_and_ends_with_2(
    settings: dict[str, str], words: str, tmp_path: Path
) -> None:
    process = await started(environment(**settings) | {"HOME": str(tmp_path)})
    _, stderr = await process.communicate()
    assert process.returncode == 2
    assert words in stderr.decode()
    assert stderr.decode().count("\n") == 1
