"""What happens to a training beside its steps, one JSON line each: starts, checkpoints, ends.

The report is made of these lines and the curves. Rank 0 writes them, and the launcher of its pod, who alone
knows how a rank was killed. Lines are appended and never changed, so that the story of earlier attempts stays;
what cannot be written costs one warning.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from sft_trainer.config import CheckpointFact
from sft_trainer.listening import Listener

logger = logging.getLogger(__name__)

Kind = Literal[
    "begun",  # rank 0 has built everything: versions, device, what it resumed
    "first_step",  # what the start was spent on
    "checkpoint",
    "trained",  # all steps are done: peak memory of every rank
    "sampling",  # answers for the report are about to be made
    "sampled",
    "ended",  # the launcher's verdict on the attempt
]


class Event(NamedTuple):
    """One line."""

    kind: str
    uid: str
    attempt: int
    time: float  # seconds since 1970
    facts: Mapping[str, Any]


class Events:
    """The lines of one attempt."""

    def __init__(self, path: Path, uid: str, attempt: int) -> None:
        self._path, self._uid, self._attempt, self._warned = path, uid, attempt, False

    def append(self, kind: Kind, **facts: object) -> None:
        """One line more, in one write: two writers never mix theirs."""
        line = {"kind": kind, "uid": self._uid, "attempt": self._attempt, "time": time.time(), **facts}
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with open(self._path, "ab", buffering=0) as file:
                file.write(json.dumps(line).encode() + b"\n")
        except OSError as error:
            if not self._warned:
                logger.warning("%s is incomplete, nothing else depends on it: %s", self._path.name, error)
            self._warned = True


class Chronicle(Listener):
    """Writes down what rank 0 goes through; `about` (versions, device, ...) goes into the first line."""

    def __init__(self, events: Events, about: Mapping[str, object]) -> None:
        self._events, self._about = events, about

    def started(self, total_steps: int, resumed_from: int | None, lost: Mapping[int, float]) -> None:
        """The first step is next."""
        self._events.append(
            "begun",
            total_steps=total_steps,
            resumed_from=resumed_from,
            lost_steps=len(lost),
            lost_seconds=round(sum(lost.values()), 3),
            **self._about,
        )

    def first_step(self, phases: Mapping[str, float]) -> None:
        """The start is over."""
        self._events.append("first_step", phases={name: round(s, 3) for name, s in phases.items()})

    def saved(self, fact: CheckpointFact, seconds: float) -> None:
        """A checkpoint was committed."""
        self._events.append("checkpoint", step=fact.step, bytes=fact.bytes, seconds=round(seconds, 3))

    def trained(self, peaks: Sequence[int]) -> None:
        """All steps are done; `peaks` is the highest memory of every rank in bytes."""
        self._events.append("trained", peaks=list(peaks))


def read(path: Path) -> list[Event]:
    """All lines that can be read, in the order in which they were written."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    return [event for line in lines if (event := _event(line)) is not None]


def _event(line: str) -> Event | None:
    try:
        found = json.loads(line)
        kind, uid, attempt = str(found.pop("kind")), str(found.pop("uid")), int(found.pop("attempt"))
        return Event(kind, uid, attempt, float(found.pop("time")), found)
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        return None  # half a line, of a node that lost power
