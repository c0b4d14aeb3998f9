"""`View` over an informer's indices: what the watch has last seen, and nothing that is known to be gone.

Kopf does not notice what was deleted while its watch was broken (a re-list after 410 tells of no deletions),
so the slow resync compares with a fresh list and hides such ghosts here.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from sftjob_operator.api.names import LABEL_JOB
from sftjob_operator.cluster.base import Key, Manifest

Index = Mapping[Key, Collection[Manifest]]
"""Kopf's index: under each key the objects that belong there."""

FORGOTTEN_METADATA = frozenset({"managedFields", "selfLink"})
LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"


class IndexView:
    """Empty until `bind`."""

    def __init__(self) -> None:
        """No indices yet."""
        self._sftjobs: Index = {}
        self._jobs: Index = {}
        self._gone: frozenset[str] = frozenset()

    def bind(self, sftjobs: Index, jobs: Index) -> None:
        """The live indices of a running informer."""
        self._sftjobs, self._jobs = sftjobs, jobs

    def sftjob(self, key: Key) -> Manifest | None:
        """The SFTJob; of two under one name (the old one's deletion was missed) the newer."""
        found = [body for body in self._sftjobs.get(key, ()) if _uid(body) not in self._gone]
        return max(found, key=lambda body: str(body["metadata"].get("creationTimestamp", "")), default=None)

    def jobs(self, key: Key) -> Sequence[Manifest]:
        """The Jobs labelled with its name."""
        return [body for body in self._jobs.get(key, ()) if _uid(body) not in self._gone]

    def keys(self) -> Sequence[Key]:
        """All SFTJobs."""
        return [key for key in self._sftjobs if self.sftjob(key) is not None]

    def uids(self) -> frozenset[str]:
        """Of everything in the indices, ghosts included."""
        return frozenset(
            _uid(body)
            for index in (self._sftjobs, self._jobs)
            for bodies in index.values()
            for body in bodies
        )

    def hide(self, uids: frozenset[str]) -> None:
        """These are gone for good: a uid never comes back."""
        self._gone = uids


def slim(body: Mapping[str, Any]) -> Manifest:
    """A copy without managedFields and the last applied configuration: half of an object, read by nobody."""
    metadata = {key: value for key, value in body["metadata"].items() if key not in FORGOTTEN_METADATA}
    annotations = metadata.get("annotations")
    if annotations and LAST_APPLIED in annotations:
        metadata["annotations"] = {key: value for key, value in annotations.items() if key != LAST_APPLIED}
    return {**body, "metadata": metadata}


def slim_job(body: Mapping[str, Any]) -> Manifest:
    """Nor does anyone read the pod template of a Job, which is most of it."""
    return {**slim(body), "spec": {name: value for name, value in body["spec"].items() if name != "template"}}


def key_of_sftjob(body: Mapping[str, Any]) -> Key:
    """Its own name."""
    return Key(body["metadata"]["namespace"], body["metadata"]["name"])


def key_of_child(body: Mapping[str, Any]) -> Key | None:
    """The SFTJob a child is labelled with."""
    name = (body["metadata"].get("labels") or {}).get(LABEL_JOB)
    return Key(body["metadata"]["namespace"], name) if name else None


def _uid(body: Manifest) -> str:
    return str(body["metadata"].get("uid"))
