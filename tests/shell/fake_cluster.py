"""A cluster in memory that behaves like an API server where the shell can tell the difference.

It counts resource versions, refuses names that are taken, checks preconditions, and shows its objects through
a view that can be frozen, as an informer's cache is when its watch lags behind.
"""

from __future__ import annotations

import itertools
import pickle
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, TypeVar

from sftjob_operator.api.names import LABEL_JOB
from sftjob_operator.api.v1alpha1 import API_VERSION, KIND
from sftjob_operator.cluster.base import (
    AlreadyExists,
    Conflict,
    Event,
    Key,
    Manifest,
    NotFound,
    Ref,
    ref_of,
)

T = TypeVar("T")


def copied(value: T) -> T:
    """A deep copy, several times as fast as the standard library's."""
    return pickle.loads(pickle.dumps(value, pickle.HIGHEST_PROTOCOL))  # type: ignore[no-any-return]


START = datetime(2026, 1, 1, 12, 0, 0, tzinfo=UTC)


class FakeCluster:
    """Cluster and View in one. `calls` lists verb and kind of every request; `faults` may raise instead."""

    def __init__(self, now: Callable[[], datetime] = lambda: START) -> None:
        self._now = now
        self.on_change: Callable[[Manifest], None] = lambda manifest: None  # the watch
        self.objects: dict[Ref, Manifest] = {}
        self.calls: list[tuple[str, str]] = []
        self.events: list[Event] = []
        self.progress: bytes | None = None
        self.faults: list[Callable[[str, str], Exception | None]] = []
        self._versions = itertools.count(1)
        self._uids = itertools.count(1)
        self._frozen: dict[Ref, Manifest] | None = None

    # ------------------------------------------------------------------ for tests

    def freeze(self) -> None:
        """The view stops following."""
        self._frozen = copied(self.objects)

    def thaw(self) -> None:
        """The view shows the present again, and the watch tells of everything."""
        self._frozen = None
        for manifest in list(self.objects.values()):
            self.on_change(manifest)

    def fail(self, verb: str, kind: str, error: Exception, times: int = 1) -> None:
        """The next `times` requests of this verb on this kind raise."""
        left = itertools.repeat(error, times)
        self.faults.append(lambda v, k: next(left, None) if (v, k) == (verb, kind) else None)

    def put(self, manifest: Manifest) -> Manifest:
        """Store as it is, as if someone else had created it."""
        stored = copied(manifest)
        stored["metadata"].setdefault("uid", f"uid-{next(self._uids)}")
        stored["metadata"].setdefault("creationTimestamp", self._now().strftime("%Y-%m-%dT%H:%M:%SZ"))
        self.objects[ref_of(stored)] = stored
        return self._touch(ref_of(stored))

    def update(self, ref: Ref, **fields: Any) -> None:
        """Change top-level fields, as a controller would."""
        self.objects[ref].update(copied(fields))
        self._touch(ref)

    def of_kind(self, kind: str) -> list[Manifest]:
        return [manifest for ref, manifest in self.objects.items() if ref.kind == kind]

    def writes(self) -> list[tuple[str, str]]:
        return [call for call in self.calls if call[0] not in ("get", "list", "fetch_progress")]

    # ------------------------------------------------------------------ Cluster

    async def create(self, manifest: Manifest, *, dry_run: bool = False) -> Manifest:
        ref = ref_of(manifest)
        self._call("dry_run" if dry_run else "create", ref.kind)
        if ref in self.objects:
            raise AlreadyExists(409, "AlreadyExists", f'{ref.kind.lower()}s "{ref.name}" already exists')
        return manifest if dry_run else self.put(manifest)

    async def apply(self, manifest: Manifest) -> Manifest:
        ref = ref_of(manifest)
        self._call("apply", ref.kind)
        if ref not in self.objects:
            return self.put(manifest)
        self.objects[ref] = _merged(self.objects[ref], manifest)
        return self._touch(ref)

    async def patch(self, ref: Ref, patch: Manifest) -> Manifest:
        self._call("patch", ref.kind)
        stored = self._existing(ref)
        wanted = patch.get("metadata", {}).get("resourceVersion")
        if wanted is not None and wanted != stored["metadata"]["resourceVersion"]:
            raise Conflict(409, "Conflict", "the object has been modified")
        self.objects[ref] = _merged(stored, patch)
        return self._touch(ref)

    async def delete(self, ref: Ref, *, uid: str | None = None, foreground: bool = False) -> None:
        self._call("delete", ref.kind)
        stored = self.objects.get(ref)
        if stored is not None and uid in (None, stored["metadata"]["uid"]):
            self._collect(ref)

    async def get(self, ref: Ref) -> Manifest | None:
        self._call("get", ref.kind)
        return copied(self.objects.get(ref))

    async def list(self, api: str, kind: str, namespace: str, labels: dict[str, str]) -> Sequence[Manifest]:
        self._call("list", kind)
        return [
            copied(manifest)
            for ref, manifest in self.objects.items()
            if (ref.api, ref.kind) == (api, kind)
            and namespace in ("", ref.namespace)
            and not (kind == "Node" and (manifest.get("spec") or {}).get("unschedulable"))
            and labels.items() <= (manifest["metadata"].get("labels") or {}).items()
        ]

    async def patch_status(
        self, ref: Ref, status: Manifest, *, uid: str | None = None, generation: int | None = None
    ) -> Manifest:
        self._call("patch_status", ref.kind)
        stored = self._existing(ref)
        if uid is not None and stored["metadata"]["uid"] != uid:
            raise NotFound(404, "NotFound", "another uid")
        if generation not in (None, stored["metadata"].get("generation")):
            raise Conflict(409, "Conflict", "the spec has changed")
        stored["status"] = copied(status)
        return self._touch(ref)

    async def emit_event(self, regarding: Manifest, event: Event) -> None:
        self._call("emit_event", "Event")
        self.events.append(event)

    async def read_log(self, ref: Ref, tail_lines: int) -> str:
        self._call("read_log", ref.kind)
        return ""

    async def fetch_progress(self, pod: Manifest) -> bytes | None:
        self._call("fetch_progress", "Pod")
        return self.progress

    # ------------------------------------------------------------------ View

    def sftjob(self, key: Key) -> Manifest | None:
        return copied(self._shown().get(Ref(API_VERSION, KIND, *key)))

    def jobs(self, key: Key) -> Sequence[Manifest]:
        return [
            copied(manifest)
            for ref, manifest in self._shown().items()
            if ref.kind == "Job"
            and ref.namespace == key.namespace
            and manifest["metadata"]["labels"].get(LABEL_JOB) == key.name
        ]

    def keys(self) -> Sequence[Key]:
        return [Key(ref.namespace, ref.name) for ref in self._shown() if ref.kind == KIND]

    # ------------------------------------------------------------------ inside

    def _shown(self) -> dict[Ref, Manifest]:
        return self.objects if self._frozen is None else self._frozen

    def _call(self, verb: str, kind: str) -> None:
        self.calls.append((verb, kind))
        for fault in self.faults:
            error = fault(verb, kind)
            if error is not None:
                raise error

    def _existing(self, ref: Ref) -> Manifest:
        if ref not in self.objects:
            raise NotFound(404, "NotFound", f'{ref.kind.lower()}s "{ref.name}" not found')
        return self.objects[ref]

    def _touch(self, ref: Ref) -> Manifest:
        stored = self.objects[ref]
        stored["metadata"]["resourceVersion"] = str(next(self._versions))
        self._tell(stored)
        return copied(stored)

    def _tell(self, manifest: Manifest) -> None:
        if self._frozen is None:
            self.on_change(manifest)

    def _collect(self, ref: Ref) -> None:
        gone = self.objects.pop(ref)
        self._tell(gone)
        uid = gone["metadata"]["uid"]
        for child, manifest in list(self.objects.items()):
            owners = manifest["metadata"].get("ownerReferences") or ()
            if any(owner["uid"] == uid for owner in owners):
                self._collect(child)


def _merged(stored: Any, patch: Any) -> Any:
    """RFC 7386."""
    if not isinstance(patch, dict):
        return copied(patch)
    result = dict(stored) if isinstance(stored, dict) else {}
    for name, value in patch.items():
        if value is None:
            result.pop(name, None)
        else:
            result[name] = _merged(result.get(name), value)
    return result
