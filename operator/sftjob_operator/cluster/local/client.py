"""`Client` over a state directory that another process may be driving: everything is read anew from the disk.

It starts nothing and takes no lock; only `attached` runs a process, which is no pod of the cluster and ends with us.
"""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections import deque
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

from sftjob_operator.cluster.base import ClusterError, Manifest, Ref, ref_of
from sftjob_operator.cluster.client import Duplex
from sftjob_operator.cluster.local import environment, lock, node, supervise, volumes
from sftjob_operator.cluster.local.cluster import LocalCluster
from sftjob_operator.cluster.local.volumes import NotYetError

LOOK_SECONDS = 0.2
_LINE_BYTES = 4 * 2**20
_KEPT = 40  # lines of stderr
_CHUNK = 64 * 1024


class LocalClient(LocalCluster):
    """The jobs of a state directory as the person sees them."""

    async def get(self, ref: Ref) -> Manifest | None:
        """As it is on the disk now."""
        self._store.reload()
        return await super().get(ref)

    async def list(self, api: str, kind: str, namespace: str, labels: dict[str, str]) -> Sequence[Manifest]:
        """As they are on the disk now."""
        self._store.reload()
        return await super().list(api, kind, namespace, labels)

    async def events_about(self, ref: Ref) -> Sequence[Manifest]:
        """The Events about one object, the oldest first."""
        self._store.reload()
        about = {"kind": ref.kind, "namespace": ref.namespace, "name": ref.name}
        return [item for item in self.events() if about.items() <= item["involvedObject"].items()]

    async def log(self, pod: Manifest, tail_lines: int | None, *, follow: bool) -> AsyncIterator[str]:
        """From its file, until its process has ended."""
        path, rest = self.kubelet.log(pod), b""
        offset = 0
        if tail_lines is not None:
            offset = _start_of_tail(path, tail_lines)
        while True:
            is_over = not follow or await self._has_ended(pod)  # asked before the last look
            while data := _read(path, offset):
                offset += len(data)
                *whole, rest = (rest + data).split(b"\n")
                for line in whole:
                    yield line.decode(errors="replace")
            if is_over:
                break
            await asyncio.sleep(LOOK_SECONDS)
        if rest:
            yield rest.decode(errors="replace")

    def is_carried_on(self) -> bool:
        """Whether a `sftjob run` holds the state directory."""
        return lock.holder(self.state) is not None

    async def _has_ended(self, pod: Manifest) -> bool:
        now = await self.get(ref_of(pod))
        if now is None or now.get("status", {}).get("phase") in ("Succeeded", "Failed"):
            return True
        # Where nobody drives the cluster any more, its status stays behind.
        return (self.kubelet.directory(pod) / supervise.EXIT_FILE).exists()

    @contextlib.asynccontextmanager
    async def attached(self, pod: Manifest) -> AsyncIterator[Duplex]:
        """The pod's container as a process of this machine."""
        with tempfile.TemporaryDirectory(prefix="sftjob-") as directory:
            what = self._command(pod, Path(directory))
            errors: deque[str] = deque(maxlen=_KEPT)
            pipe = asyncio.subprocess.PIPE
            process = await asyncio.create_subprocess_exec(
                *what.argv,
                env=what.env,
                cwd=directory,
                stdin=pipe,
                stdout=pipe,
                stderr=pipe,
                limit=_LINE_BYTES,
                start_new_session=True,  # Ctrl-C is ours, and we end it
            )
            keeping = asyncio.create_task(_keep(process.stderr, errors))
            try:
                yield _Process(process, errors)
            finally:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
                await keeping

    def _command(self, pod: Manifest, directory: Path) -> environment.Command:
        self._store.reload()
        try:
            mounts = volumes.mounts(pod, directory, self._store)
        except NotYetError as error:
            raise ClusterError(error.message) from None
        base = {**self.kubelet.machine, "SFTJOB_CPUS": str(node.cpus())}
        fields = environment.downward_fields(pod)
        return environment.command(pod, mounts, base, lambda kind, name: {}, fields)


class _Process:
    def __init__(self, process: asyncio.subprocess.Process, errors: deque[str]) -> None:
        self._process, self._errors = process, errors

    async def send(self, line: str) -> None:
        stream = self._process.stdin
        if stream is not None:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # its end shows in `lines`
                stream.write(line.encode() + b"\n")
                await stream.drain()

    async def lines(self) -> AsyncIterator[str]:
        stream = self._process.stdout
        while stream is not None and (line := await stream.readline()):
            yield line.decode(errors="replace").rstrip("\n")

    def said(self) -> str:
        return "\n".join(self._errors)


async def _keep(stream: asyncio.StreamReader | None, errors: deque[str]) -> None:
    while stream is not None and (line := await stream.readline()):
        errors.append(line.decode(errors="replace").rstrip("\n"))


def _read(path: Path, offset: int) -> bytes:
    try:
        with path.open("rb") as file:
            file.seek(offset)
            return file.read(_CHUNK)
    except OSError:
        return b""


def _start_of_tail(path: Path, lines: int) -> int:
    """Where the last lines begin."""
    try:
        data = path.read_bytes()
    except OSError:
        return 0
    return len(data) - len(b"".join(data.splitlines(keepends=True)[-lines:]))
