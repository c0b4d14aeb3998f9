"""`Cluster`: everything the operator asks of a cluster. Two real implementations: the API server, and local processes.

Nothing above this protocol knows which one it talks to.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from sftjob_operator.api.objects import Event as Event
from sftjob_operator.api.objects import Manifest as Manifest
from sftjob_operator.api.objects import Ref as Ref
from sftjob_operator.api.objects import ref_of as ref_of


class Key(NamedTuple):
    """An SFTJob: the key of the work queue."""

    namespace: str
    name: str


class ClusterError(Exception):
    """The cluster could not be reached or failed (5xx, connection): try again later."""


class Rejected(ClusterError):
    """The cluster understood and said no (4xx but 404, 409, 429). `message` is the API server's own words."""

    def __init__(self, code: int, reason: str, message: str) -> None:
        """Keep status code, reason word and message."""
        super().__init__(f"{reason} ({code}): {message}")
        self.code, self.reason, self.message = code, reason, message


class AlreadyExists(Rejected):
    """409 on create: an object of that name is there."""


class Conflict(Rejected):
    """409 on update: the object has changed since it was read."""


class NotFound(Rejected):
    """404 where the object was needed (patch, status)."""


class Cluster(Protocol):
    """The effects. Every method may raise ClusterError; time limits are the implementation's."""

    async def create(self, manifest: Manifest, *, dry_run: bool = False) -> Manifest:
        """Create; AlreadyExists when the name is taken, Rejected when refused."""

    async def apply(self, manifest: Manifest) -> Manifest:
        """Server-side apply with our field manager, forced."""

    async def patch(self, ref: Ref, patch: Manifest) -> Manifest:
        """JSON merge patch; NotFound when it is not there."""

    async def delete(self, ref: Ref, *, uid: str | None = None, foreground: bool = False) -> None:
        """Delete with background or foreground propagation; not there (or another uid) is fine."""

    async def get(self, ref: Ref) -> Manifest | None:
        """Read one object from the API server, None when it is not there."""

    async def list(self, api: str, kind: str, namespace: str, labels: dict[str, str]) -> Sequence[Manifest]:
        """Read the objects with these labels from the API server; of Nodes those that are not cordoned."""

    async def patch_status(
        self, ref: Ref, status: Manifest, *, uid: str | None = None, generation: int | None = None
    ) -> Manifest:
        """Replace the whole status; NotFound when the object (or the one with this uid) is gone, Conflict when
        its spec is another than that of `generation`.
        """

    async def emit_event(self, regarding: Manifest, event: Event) -> None:
        """Post an Event; best effort, never raises for a refused one."""

    async def read_log(self, ref: Ref, tail_lines: int) -> str:
        """The last lines of a pod's main container; empty when there are none."""

    async def fetch_progress(self, pod: Manifest) -> bytes | None:
        """GET /progress of a training pod: untrusted, no redirects, at most 64 KiB, 2 s; None when not to be had."""


class View(Protocol):
    """The informer's cache: objects as last seen by the watch. Reads are free and may be stale."""

    def sftjob(self, key: Key) -> Manifest | None:
        """The SFTJob, None when it is gone."""

    def jobs(self, key: Key) -> Sequence[Manifest]:
        """The batch/v1 Jobs labelled with this SFTJob's name."""

    def keys(self) -> Sequence[Key]:
        """All SFTJobs."""


def sftjobs_of(view: View, namespace: str) -> list[Manifest]:
    """Every SFTJob of the namespace."""
    found = (view.sftjob(key) for key in view.keys() if key.namespace == namespace)
    return [body for body in found if body is not None]
