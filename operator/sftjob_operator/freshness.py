"""Whether the informer's cache has caught up with our own writes.

Deciding on a cache that does not show the Job just created would create another. So after a write the key
waits until the view shows it, or for five seconds: the watch event that brings the news also brings the key
back.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from sftjob_operator.cluster.base import Key, Manifest

PATIENCE_SECONDS = 5.0
VIEWED = frozenset({"SFTJob", "Job"})


@dataclass
class _Expected:
    until: float
    written: dict[str, str] = field(default_factory=dict)  # uid: resourceVersion
    deleted: set[str] = field(default_factory=set)  # uids

    @property
    def since(self) -> float:
        """When the last of these writes was made."""
        return self.until - PATIENCE_SECONDS


class Freshness:
    """What each key expects to see."""

    def __init__(self, lag: Callable[[float], None] = lambda _: None) -> None:
        """Nothing is expected yet. `lag` is told how long the watch took, each time it has caught up."""
        self._expected: dict[Key, _Expected] = {}
        self._lag = lag

    def wrote(self, key: Key, answer: Manifest) -> None:
        """The cluster answered a write with this object; the view shows SFTJobs and Jobs alone."""
        if answer.get("kind") not in VIEWED:
            return
        metadata = answer.get("metadata", {})
        if metadata.get("uid") and metadata.get("resourceVersion"):
            self._expect(key).written[metadata["uid"]] = metadata["resourceVersion"]

    def deleted(self, key: Key, uid: str | None) -> None:
        """An object is going."""
        if uid is None:
            return
        expected = self._expect(key)
        expected.deleted.add(uid)
        expected.written.pop(uid, None)

    def forget(self, key: Key) -> None:
        """The SFTJob is gone."""
        self._expected.pop(key, None)

    def wait(self, key: Key, seen: Sequence[Manifest]) -> float:
        """Seconds this pass should wait for; 0 when `seen` shows everything, or patience is at its end."""
        expected = self._expected.get(key)
        if expected is None:
            return 0.0
        remaining = expected.until - _now()
        if remaining > 0 and not _shows(seen, expected):
            return remaining
        self._lag(_now() - expected.since)
        del self._expected[key]
        return 0.0

    def _expect(self, key: Key) -> _Expected:
        expected = self._expected.setdefault(key, _Expected(0.0))
        expected.until = _now() + PATIENCE_SECONDS
        return expected


def _now() -> float:
    return asyncio.get_running_loop().time()


def _shows(seen: Sequence[Manifest], expected: _Expected) -> bool:
    found = {str(body["metadata"].get("uid")): body["metadata"] for body in seen}
    for uid, version in expected.written.items():
        if uid not in found or not at_least(str(found[uid].get("resourceVersion", "")), version):
            return False
    return all(uid not in found or found[uid].get("deletionTimestamp") for uid in expected.deleted)


def at_least(version: str, wanted: str) -> bool:
    """Whether a resourceVersion is as new; versions that are no numbers must be equal."""
    if version.isdigit() and wanted.isdigit():
        return int(version) >= int(wanted)
    return version == wanted
