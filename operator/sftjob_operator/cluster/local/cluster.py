"""LocalCluster: `Cluster` and `View` over objects on disk and processes of this machine.

Whoever holds the state directory's lock calls `run`, which is all controllers in one loop: garbage collection,
Jobs, pods. The objects outlive it, and so do the processes of the pods.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

import aiohttp

from sft_trainer.config import METRICS_PORT
from sftjob_operator.api import v1alpha1
from sftjob_operator.api.names import LABEL_JOB
from sftjob_operator.cluster.base import Event, Key, Manifest, Ref, ref_of
from sftjob_operator.cluster.local import controllers, sources
from sftjob_operator.cluster.local.environment import machine
from sftjob_operator.cluster.local.pods import Kubelet
from sftjob_operator.cluster.local.server import Server
from sftjob_operator.cluster.local.store import Store

TICK_SECONDS = 0.2  # how late the end of a process is seen
PROGRESS_BYTES = 64 * 1024
PROGRESS_SECONDS = 2.0
LOG_BYTES = 64 * 1024


class LocalCluster:
    """The cluster whose state lies in a directory."""

    def __init__(self, state: Path, environment: Mapping[str, str] = os.environ) -> None:
        """Load the objects; nothing runs before `tick` or `run`."""
        self.state = state.resolve()
        self._store = Store(self.state / "objects")
        self._server = Server(self._store)
        self.kubelet = Kubelet(
            self.state, self._store, machine(environment, sources.roots()), self._server.emit_event
        )
        self._collected = -1  # version of the store at the last garbage collection
        self._wake = asyncio.Event()
        self._session: aiohttp.ClientSession | None = None
        self._store.on_change(lambda item: self._wake.set())

    # ----------------------------------------------------------------- Cluster

    async def create(self, manifest: Manifest, *, dry_run: bool = False) -> Manifest:
        """As POST."""
        return self._server.create(manifest, dry_run=dry_run)

    async def apply(self, manifest: Manifest) -> Manifest:
        """Server-side apply."""
        return self._server.apply(manifest)

    async def patch(self, ref: Ref, patch: Manifest) -> Manifest:
        """JSON merge patch."""
        return self._server.patch(ref, patch)

    async def delete(self, ref: Ref, *, uid: str | None = None, foreground: bool = False) -> None:
        """Foreground propagation is for Jobs."""
        self._server.delete(ref, uid=uid, foreground=foreground)

    async def get(self, ref: Ref) -> Manifest | None:
        """One object."""
        return self._server.get(ref)

    async def list(self, api: str, kind: str, namespace: str, labels: dict[str, str]) -> Sequence[Manifest]:
        """The objects with these labels."""
        return self._server.list(api, kind, namespace, labels)

    async def patch_status(
        self, ref: Ref, status: Manifest, *, uid: str | None = None, generation: int | None = None
    ) -> Manifest:
        """The status and nothing else."""
        return self._server.replace_status(ref, status, uid=uid, generation=generation)

    async def emit_event(self, regarding: Manifest, event: Event) -> None:
        """Kept as an object."""
        self._server.emit_event(regarding, event)

    async def read_log(self, ref: Ref, tail_lines: int) -> str:
        """Of the pod's only container."""
        pod = self._server.get(ref)
        return "" if pod is None else _tail(self.kubelet.log(pod), tail_lines)

    async def fetch_progress(self, pod: Manifest) -> bytes | None:
        """From the pod's own address."""
        address = pod.get("status", {}).get("podIP")
        if address is None:
            return None
        if self._session is None:
            self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=PROGRESS_SECONDS))
        url = f"http://{address}:{METRICS_PORT}/progress"
        with contextlib.suppress(aiohttp.ClientError, TimeoutError, OSError):
            async with self._session.get(url, allow_redirects=False) as answer:
                if answer.status == 200:
                    return await _limited(answer, PROGRESS_BYTES)
        return None

    async def close(self) -> None:
        """Drop the connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    # ----------------------------------------------------------------- View

    def sftjob(self, key: Key) -> Manifest | None:
        """The SFTJob; here it is never stale."""
        return self._store.get(Ref(v1alpha1.API_VERSION, v1alpha1.KIND, key.namespace, key.name))

    def jobs(self, key: Key) -> Sequence[Manifest]:
        """Its Jobs."""
        return self._store.select("batch/v1", "Job", key.namespace, {LABEL_JOB: key.name})

    def keys(self) -> Sequence[Key]:
        """All SFTJobs."""
        found = self._store.select(v1alpha1.API_VERSION, v1alpha1.KIND)
        return [Key(ref_of(item).namespace, ref_of(item).name) for item in found]

    def events(self) -> Sequence[Manifest]:
        """All Events, the oldest first."""
        return self._server.events()

    def watch(self, changed: Callable[[Key], None]) -> None:
        """Tell of every SFTJob that changed, or whose Job did."""

        def listener(item: Manifest) -> None:
            ref = ref_of(item)
            name = item["metadata"].get("labels", {}).get(LABEL_JOB)
            if ref.kind == v1alpha1.KIND:
                changed(Key(ref.namespace, ref.name))
            elif ref.kind == "Job" and name is not None:
                changed(Key(ref.namespace, name))

        self._store.on_change(listener)

    # ----------------------------------------------------------------- controllers

    def tick(self) -> None:
        """One look of every controller at everything."""
        now = datetime.now(UTC)
        if self._collected != self._store.version:
            self._collected = self._store.version
            controllers.collect_garbage(self._store)
            controllers.provision(self._store, self.state / "volumes")
        for job in self._store.select("batch/v1", "Job"):
            controllers.sync_job(self._store, job, now)
        for pod in self._store.select("v1", "Pod"):
            self.kubelet.sync(pod)
        self.kubelet.write_hosts()

    async def run(self) -> None:
        """Tick until cancelled: at once after a write, and often enough to see processes end."""
        self.kubelet.sweep()
        while True:
            self._wake.clear()
            self.tick()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(TICK_SECONDS):
                    await self._wake.wait()

    def pods(self, namespace: str = "", labels: dict[str, str] | None = None) -> Sequence[Manifest]:
        """The pods with these labels."""
        return self._store.select("v1", "Pod", namespace, labels)

    def has_processes(self, labels: dict[str, str] | None = None) -> bool:
        """Whether the process of any pod with these labels lives."""
        return any(self.kubelet.is_running(pod) for pod in self.pods(labels=labels))

    def kill_pods(self, labels: dict[str, str] | None = None) -> None:
        """End the processes of pods without the grace period; ask until `has_processes` says no."""
        for pod in self.pods(labels=labels):
            self.kubelet.kill(pod)


async def _limited(answer: aiohttp.ClientResponse, limit: int) -> bytes | None:
    body = bytearray()
    async for chunk in answer.content.iter_chunked(8192):
        body += chunk
        if len(body) > limit:
            return None
    return bytes(body)


def _tail(path: Path, lines: int) -> str:
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - LOG_BYTES))
            text = file.read().decode(errors="replace")
    except OSError:
        return ""
    return "".join(text.splitlines(keepends=True)[-lines:])
