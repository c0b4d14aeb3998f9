"""`Client` over a real API server: Events of one object, logs as a stream, and a pod whose stdin we hold.

All of it happens with the rights of the person in the kubeconfig, and nothing of it in the operator.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections import deque
from collections.abc import AsyncIterator, Sequence

import aiohttp

from sftjob_operator.api.names import CONTAINER
from sftjob_operator.cluster.base import (
    AlreadyExists,
    ClusterError,
    Manifest,
    NotFound,
    Ref,
    Rejected,
    ref_of,
)
from sftjob_operator.cluster.client import Duplex
from sftjob_operator.cluster.connection import Connection
from sftjob_operator.cluster.http import ApiClient, Socket
from sftjob_operator.cluster.kubernetes import KubernetesCluster, address, collection
from sftjob_operator.cluster.patience import Patience
from sftjob_operator.pods import pod_trouble

LOOK_SECONDS = 0.5
ATTACH = "v4.channel.k8s.io"
_STDIN, _STDOUT, _STDERR = 0, 1, 2
_KEPT = 40  # lines of stderr
_HOPELESS = ("ImagePull", "ContainerConfig")
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}\S+")
"""As kubelets write it: of fixed width, so that texts compare as times do."""


def _timed(line: str) -> tuple[str, str]:
    """Its time and its words; the time is empty where the kubelet itself speaks."""
    time, _, words = line.partition(" ")
    return (time, words) if _TIME.fullmatch(time) else ("", line)


class KubernetesClient(KubernetesCluster):
    """The cluster as the person sees it."""

    field_manager = "sftjob"
    metadata_kinds = frozenset({"Secret"})

    def __init__(self, connection: Connection, start_seconds: float = 600.0) -> None:
        """`start_seconds`: how long a pod of ours may take to run."""
        super().__init__(connection)
        self._http: ApiClient = self._api
        self._start_seconds = start_seconds

    async def list(self, api: str, kind: str, namespace: str, labels: dict[str, str]) -> Sequence[Manifest]:
        """With kind and apiVersion, which the API server leaves out in lists."""
        found = await super().list(api, kind, namespace, labels)
        return [{"apiVersion": api, "kind": kind, **item} for item in found]

    async def version(self) -> str:
        """Of the API server."""
        return str((await self._http.json("GET", "/version")).get("gitVersion", "?"))

    async def events_about(self, ref: Ref) -> Sequence[Manifest]:
        """Selected by the server: a namespace may hold thousands."""
        query = {"fieldSelector": f"involvedObject.kind={ref.kind},involvedObject.name={ref.name}"}
        found = await self._http.json("GET", collection(Ref("v1", "Event", ref.namespace, "")), query=query)
        return sorted(found.get("items", []), key=_moment)

    async def log(self, pod: Manifest, tail_lines: int | None, *, follow: bool) -> AsyncIterator[str]:
        """Empty when the pod is gone or has not begun.

        A followed one that breaks off while the container runs (a kubelet restarts, a proxy loses patience) is taken up
        again where it was: lines come with their times, and those that were seen are left out.
        """
        query = {"container": CONTAINER, "follow": str(follow).lower(), "timestamps": "true"}
        if tail_lines is not None:
            query["tailLines"] = str(tail_lines)
        seen, patience = "", Patience()
        while True:
            try:
                async for line in self._http.lines(address(ref_of(pod)) + "/log", query):
                    time, words = _timed(line)
                    if time and time <= seen:
                        continue
                    seen = time or seen
                    patience.renew()
                    yield words
            except NotFound:
                return
            except ClusterError as error:
                if not follow:
                    raise
                patience.bear(error)
            if not follow or not await self._runs(pod):
                return
            if seen:
                query = {**query, "sinceTime": seen}
                query.pop("tailLines", None)
            await asyncio.sleep(LOOK_SECONDS)

    async def _runs(self, pod: Manifest) -> bool:
        """Whether its container does, as far as the API server knows."""
        try:
            now = await self.get(ref_of(pod))
        except Rejected:
            return False  # who may read logs may not be allowed to look at pods
        except ClusterError:
            return True  # the next look at the log fails too, and counts
        statuses = (now or {}).get("status", {}).get("containerStatuses") or []
        return any(one["name"] == CONTAINER and "running" in (one.get("state") or {}) for one in statuses)

    @contextlib.asynccontextmanager
    async def attached(self, pod: Manifest) -> AsyncIterator[Duplex]:
        """The pod is deleted on every way out; its deadline ends it where we cannot."""
        made = pod
        try:
            with contextlib.suppress(
                AlreadyExists
            ):  # ours: the name is random, and the first answer was lost
                made = await self.create(pod)
            await self._until_running(made)
            query = [("container", CONTAINER), *((name, "true") for name in ("stdin", "stdout", "stderr"))]
            socket = await self._http.socket(address(ref_of(made)) + "/attach", query, ATTACH)
            try:
                yield _Attached(socket)
            finally:
                await socket.close()
        finally:
            with contextlib.suppress(ClusterError):
                await self.delete(ref_of(made), uid=made["metadata"].get("uid"))

    def is_carried_on(self) -> bool:
        """Whether it really runs is for `sftjob doctor` to say: most people may not look."""
        return True

    async def _until_running(self, made: Manifest) -> None:
        ref, why = ref_of(made), "it has not been scheduled"
        for _ in range(int(self._start_seconds / LOOK_SECONDS)):
            pod = await self.get(ref)
            if pod is None:
                raise ClusterError(f"pod {ref.name} was deleted by someone else")
            phase = pod.get("status", {}).get("phase")
            if phase == "Running":
                return
            if phase in ("Failed", "Succeeded"):
                said = pod["status"].get("message") or (await self.read_log(ref, 3)).strip() or phase
                raise ClusterError(f"pod {ref.name} ended at once: {said}")
            found = pod_trouble(pod)
            why = why if found is None else found.message
            if found is not None and found.reason in _HOPELESS:
                break
            await asyncio.sleep(LOOK_SECONDS)
        raise ClusterError(f"the pod on the volume does not start: {why}")


class _Attached:
    """The channels of an attach, as lines."""

    def __init__(self, socket: Socket) -> None:
        self._socket = socket
        self._errors: deque[str] = deque(maxlen=_KEPT)

    async def send(self, line: str) -> None:
        with contextlib.suppress(aiohttp.ClientError, ConnectionError):  # its end shows in `lines`
            await self._socket.send_bytes(bytes([_STDIN]) + line.encode() + b"\n")

    async def lines(self) -> AsyncIterator[str]:
        rest = b""
        async for message in self._socket:
            if message.type is not aiohttp.WSMsgType.BINARY or not message.data:
                continue
            channel, data = message.data[0], message.data[1:]
            if channel == _STDERR:
                self._errors.extend(data.decode(errors="replace").splitlines())
            elif channel == _STDOUT:
                *whole, rest = (rest + data).split(b"\n")
                for line in whole:
                    yield line.decode(errors="replace")

    def said(self) -> str:
        return "\n".join(self._errors)


def _moment(event: Manifest) -> str:
    """Events of different reporters have different times."""
    known = event.get("lastTimestamp") or event.get("eventTime") or event["metadata"].get("creationTimestamp")
    return str(known)[:19]
