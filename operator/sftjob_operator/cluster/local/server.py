"""The API server's place: verbs on the store, with admission, generations, uids and conflicts as clients see them.

Synchronous, because everything is in memory and a write is one small file.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence

from sftjob_operator.api.names import FIELD_MANAGER
from sftjob_operator.cluster.base import (
    AlreadyExists,
    Conflict,
    Event,
    Manifest,
    NotFound,
    Ref,
    ref_of,
)
from sftjob_operator.cluster.local import admission, controllers, node, objects
from sftjob_operator.cluster.local.store import Store

MAX_EVENTS = 200  # the newest so many are kept
_OURS = ("uid", "creationTimestamp", "namespace", "name", "generation", "resourceVersion")


class Server:
    """Writes raise Rejected and its kinds; what comes back are copies."""

    def __init__(self, store: Store) -> None:
        """Serve the objects of `store`."""
        self._store = store

    def create(self, manifest: Manifest, *, dry_run: bool = False) -> Manifest:
        """As POST."""
        ref = ref_of(manifest)
        admission.check_kind(ref)
        if self._store.get(ref) is not None:
            raise AlreadyExists(409, "AlreadyExists", f"{_named(ref)} already exists")
        item = admission.admit(_fresh(manifest, ref), None)
        return item if dry_run else self._store.put(item)

    def apply(self, manifest: Manifest) -> Manifest:
        """Server-side apply: ours is what we sent, and what we send no more goes."""
        ref = ref_of(manifest)
        admission.check_kind(ref)
        old = self._store.get(ref)
        base = old or _fresh({key: manifest[key] for key in ("apiVersion", "kind", "metadata")}, ref)
        metadata = {**manifest["metadata"], "namespace": ref.namespace}
        wanted = {key: value for key, value in manifest.items() if key != "status"}
        managed: list[Manifest] = base["metadata"].get("managedFields", [])
        owned: Manifest = managed[0]["fieldsV1"] if managed else {}
        item = objects.apply(base, owned, {**wanted, "metadata": metadata})
        fields = objects.fields_of({key: wanted[key] for key in wanted if key not in ("apiVersion", "kind")})
        record = {"manager": FIELD_MANAGER, "operation": "Apply", "apiVersion": ref.api, "fieldsV1": fields}
        item["metadata"]["managedFields"] = [record]
        return self._replace(item, old)

    def patch(self, ref: Ref, patch: Manifest) -> Manifest:
        """JSON merge patch of everything but the status subresource."""
        old = self._needed(ref)
        version = patch.get("metadata", {}).get("resourceVersion")
        if version not in (None, old["metadata"]["resourceVersion"]):
            words = (
                "the object has been modified; please apply your changes to the latest version and try again"
            )
            raise Conflict(409, "Conflict", f"Operation cannot be fulfilled on {_named(ref)}: {words}")
        return self._replace(objects.merge_patch(old, patch), old)

    def delete(self, ref: Ref, *, uid: str | None = None, foreground: bool = False) -> None:
        """Dependents follow with the next tick; in the foreground a Job goes after its pods, which get their grace
        period.
        """
        admission.check_kind(ref)
        item = self._store.get(ref)
        if item is None or uid not in (None, item["metadata"]["uid"]):
            return
        if ref.kind != "Pod" and not (foreground and ref.kind == "Job"):
            self._store.remove(ref)
        elif not objects.is_terminating(item):
            self._store.put(controllers.asked_to_go(item))

    def get(self, ref: Ref) -> Manifest | None:
        """One object."""
        admission.check_kind(ref)
        if ref.kind == "Node":
            return node.node() if ref.name == node.name() else None
        return self._store.get(ref)

    def list(self, api: str, kind: str, namespace: str, labels: dict[str, str]) -> Sequence[Manifest]:
        """The objects with these labels; an empty namespace means all."""
        admission.check_kind(Ref(api, kind, namespace, ""))
        if kind == "Node":
            this = node.node()
            return [this] if objects.has_labels(this, labels) else []
        return self._store.select(api, kind, namespace, labels)

    def replace_status(
        self, ref: Ref, status: Manifest, *, uid: str | None = None, generation: int | None = None
    ) -> Manifest:
        """The status and nothing else."""
        old = self._needed(ref)
        if uid not in (None, old["metadata"]["uid"]):
            raise NotFound(404, "NotFound", f"{ref.kind} {ref.name} with uid {uid} is gone")
        if generation not in (None, old["metadata"].get("generation")):
            raise Conflict(409, "Conflict", f"the spec of {ref.kind} {ref.name} has changed")
        return self._store.put(admission.admit({**old, "status": status}, old))

    def emit_event(self, regarding: Manifest, event: Event) -> None:
        """Keep it as an object; the oldest give way."""
        ref, now = ref_of(regarding), objects.timestamp()
        involved = {"apiVersion": ref.api, "kind": ref.kind, "namespace": ref.namespace, "name": ref.name}
        item = {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"namespace": ref.namespace, "name": f"{ref.name}.{uuid.uuid1().hex}"},
            "involvedObject": {**involved, "uid": regarding["metadata"].get("uid", "")},
            "type": event.type,
            "reason": event.reason,
            "message": event.message,
            "source": {"component": FIELD_MANAGER},
            "firstTimestamp": now,
            "lastTimestamp": now,
            "count": 1,
        }
        self._store.put(_fresh(item, ref_of(item)))
        for old in self.events()[:-MAX_EVENTS]:
            self._store.remove(ref_of(old))

    def events(self) -> Sequence[Manifest]:
        """All Events, the oldest first."""
        found = self._store.select("v1", "Event")
        return sorted(found, key=lambda item: int(item["metadata"]["resourceVersion"]))

    def _needed(self, ref: Ref) -> Manifest:
        admission.check_kind(ref)
        item = self._store.get(ref)
        if item is None:
            raise NotFound(404, "NotFound", f"{_named(ref)} not found")
        return item

    def _replace(self, item: Manifest, old: Manifest | None) -> Manifest:
        """Store `item` over `old`; what the server owns stays as it was."""
        if old is None:
            return self._store.put(admission.admit(item, None))
        item["metadata"] |= {key: old["metadata"][key] for key in _OURS if key in old["metadata"]}
        if item["kind"] in admission.WITH_STATUS:
            item.pop("status", None)
            if "status" in old:
                item["status"] = old["status"]
        item = admission.admit(item, old)
        if item.get("spec") != old.get("spec") and "generation" in item["metadata"]:
            item["metadata"]["generation"] += 1
        return self._store.put(item)


def _fresh(manifest: Manifest, ref: Ref) -> Manifest:
    """A new object as the server completes it."""
    item = dict(manifest)
    if ref.kind in admission.WITH_STATUS:
        item.pop("status", None)
    metadata = {**manifest["metadata"], "namespace": ref.namespace, "uid": str(uuid.uuid4())}
    metadata |= {"creationTimestamp": objects.timestamp(), "resourceVersion": "0"}
    if ref.kind in admission.WITH_STATUS:
        metadata["generation"] = 1
    return {**item, "metadata": metadata}


def _named(ref: Ref) -> str:
    group = f".{ref.api.partition('/')[0]}" if "/" in ref.api else ""
    return f'{ref.kind.lower()}s{group} "{ref.name}"'
