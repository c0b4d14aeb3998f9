"""Reads what a training has left in its folder. Whatever is missing or damaged is absent, never an error.

So a report can be made of a job that runs, that failed, or of which only the curves are left.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ValidationError

from sft_trainer import curves, events
from sft_trainer.checkpoint import owner
from sft_trainer.config import Outcome, Prepared, TrainConfig
from sft_trainer.data.cache import TokenCache
from sft_trainer.events import Event, Kind
from sft_trainer.layout import JobFolder, within
from sft_trainer.samples import Samples

Lengths = npt.NDArray[np.int64]
Parsed = TypeVar("Parsed", bound=BaseModel)


@dataclass(frozen=True)
class Material:
    """Everything the report is made of."""

    name: str
    folder: JobFolder
    events: Sequence[Event] = ()
    config: TrainConfig | None = None  # of the newest run
    prepared: Prepared | None = None
    samples: Samples | None = None
    steps: Sequence[dict[str, Any]] = ()  # lines of the curves, in order
    evaluations: Sequence[dict[str, Any]] = ()
    lengths: Lengths = field(default_factory=lambda: np.zeros(0, np.int64))  # of the training rows
    heard: float | None = None  # when the last line was written

    def of_kind(self, kind: Kind) -> list[Event]:
        """The events of a kind, in order."""
        return [event for event in self.events if event.kind == kind]

    @property
    def outcome(self) -> Outcome | None:
        """How the last attempt ended; None while it runs, or where nobody could say."""
        for event in reversed(self.events):
            if event.kind == "begun":
                return None
            if event.kind == "ended":
                return outcome_of(event)
        return None


def outcome_of(event: Event) -> Outcome | None:
    """The verdict that an `ended` event carries."""
    try:
        return Outcome.model_validate(event.facts.get("outcome"))
    except ValidationError:
        return None


def collect(root: Path) -> Material:
    """What lies in `root`, a jobs/<name> of a workspace."""
    folder, volume = JobFolder(root), root.parent.parent
    story = _ours(events.read(folder.events), folder)
    begun = [event for event in story if event.kind == "begun"]
    config = _parsed(TrainConfig, begun[-1].facts.get("config")) if begun else None
    points = list(curves.read(folder.curves))
    told = [
        event.time for event in story if event.kind not in ("sampling", "sampled")
    ]  # may be made much later
    return Material(
        name=root.name,
        folder=folder,
        events=story,
        config=config,
        prepared=_prepared(folder, config),
        samples=_read(Samples, folder.samples),
        steps=[point for point in points if "lr" in point],
        evaluations=[point for point in points if "eval_loss" in point],
        lengths=_lengths(volume, config),
        heard=max(filter(None, (told[-1] if told else None, _modified(folder.curves))), default=None),
    )


def _ours(story: Sequence[Event], folder: JobFolder) -> list[Event]:
    """Without those of a job that only tried to use the folder: it has an end there, but no beginning."""
    standing = owner.read(folder.owner)
    known = {event.uid for event in story if event.kind == "begun"} | ({standing.uid} if standing else set())
    return [event for event in story if event.uid in known]


def _prepared(folder: JobFolder, config: TrainConfig | None) -> Prepared | None:
    """Of the data that was trained on; a later preparation may have been of other data."""
    found = _read(Prepared, folder.prepared)
    if found is None or config is None or found.result.data.cache != config.data.cache:
        return None
    return found


def _lengths(volume: Path, config: TrainConfig | None) -> Lengths:
    try:
        if config is not None:
            return TokenCache(within(volume, config.data.cache)).train.lengths
    except (OSError, ValueError):  # Arrow's errors are ValueErrors
        pass
    return np.zeros(0, np.int64)


def _read(kind: type[Parsed], path: Path) -> Parsed | None:
    try:
        return kind.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None


def _parsed(kind: type[Parsed], document: object) -> Parsed | None:
    try:
        return kind.model_validate(document)
    except ValidationError:
        return None


def _modified(path: Path) -> float | None:
    try:
        return path.stat().st_mtime
    except OSError:
        return None
