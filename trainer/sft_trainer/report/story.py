"""What the events and curves of a training amount to: its attempts, and where the time went. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sft_trainer.events import Event
from sft_trainer.report.collect import Material, outcome_of


@dataclass(frozen=True)
class Attempt:
    """One run of the ranks."""

    number: int
    begun: float | None  # seconds since 1970
    device: str
    ranks: int | None
    resumed_from: int | None
    lost_steps: int  # done before, and again by this run
    last_step: int | None
    ending: str  # Succeeded, a failure class, or that nobody could say
    message: str


@dataclass(frozen=True)
class Times:
    """Seconds from the first beginning to the last word, as the pods of rank 0 saw them."""

    steps: float  # that are in the result
    repeated: float  # steps done again after a restart
    evaluation: float
    checkpoints: float
    starting: float
    rest: float  # export, samples, and what nobody has written down
    waiting: float  # between the end of an attempt and the start of the next: suspended, queued, backing off

    @property
    def total(self) -> float:
        """All of it but the waiting, in which there were no pods."""
        parts = (self.steps, self.repeated, self.evaluation, self.checkpoints, self.starting, self.rest)
        return sum(parts)

    @property
    def goodput(self) -> float | None:
        """Share of the time that made steps which are in the result."""
        return self.steps / self.total if self.total > 0 else None


@dataclass(frozen=True)
class Speed:
    """Throughput over all steps of the curves."""

    tokens: int
    supervised: int
    tokens_per_second: float | None
    supervised_per_second: float | None
    median_step_seconds: float | None


def attempts(material: Material) -> list[Attempt]:
    """All runs, in the order in which they began; a run that ended before it had begun is one too."""
    found: list[Attempt] = []
    story = [event for event in material.events if event.kind in ("begun", "ended")]
    for index, event in enumerate(story):
        later = story[index + 1] if index + 1 < len(story) else None
        if event.kind == "begun":
            own = later is not None and later.kind == "ended" and later.attempt == event.attempt
            found.append(_attempt(event, later if own else None, is_last=later is None))
        elif index == 0 or story[index - 1].kind == "ended" or story[index - 1].attempt != event.attempt:
            found.append(_attempt(None, event, is_last=False))
    return found


def _attempt(begun: Event | None, ended: Event | None, *, is_last: bool) -> Attempt:
    facts = begun.facts if begun else {}
    said = outcome_of(ended) if ended else None
    if said is not None:
        ending, message = said.reason, said.message
    elif is_last:
        ending, message = "Running", "it runs, or was lost without a word"
    else:
        ending, message = "Lost", "no word of its end: the pod was killed, or its node was lost"
    either = begun or ended
    return Attempt(
        number=either.attempt if either else 0,
        begun=begun.time if begun else None,
        device=str(facts.get("device", "")),
        ranks=facts.get("world_size"),
        resumed_from=facts.get("resumed_from"),
        lost_steps=int(facts.get("lost_steps") or 0),
        last_step=said.last_step if said else None,
        ending=ending,
        message=message if ending != "Succeeded" else "",
    )


def times(material: Material) -> Times:
    """Where the time went."""
    begun, first = material.of_kind("begun"), material.of_kind("first_step")
    phases = [_numbers(event.facts.get("phases")) for event in first]
    starting = sum(
        seconds
        for one in phases
        for name, seconds in one.items()
        if name not in ("first step", "evaluation")  # these are counted as what they are
    )
    steps = _sum(point.get("seconds") for point in material.steps)
    repeated = _sum(event.facts.get("lost_seconds") for event in begun)
    evaluation = _sum(point.get("seconds") for point in material.evaluations)
    checkpoints = _sum(event.facts.get("seconds") for event in material.of_kind("checkpoint"))
    known = steps + repeated + evaluation + checkpoints + starting
    starts = [event.time for event in begun[:1]]
    starts += [event.time - sum(one.values()) for event, one in zip(first[:1], phases, strict=False)]
    wall = (material.heard or 0.0) - min(starts) if starts else 0.0
    waiting = _waiting(material)
    return Times(
        steps, repeated, evaluation, checkpoints, starting, max(0.0, wall - known - waiting), waiting
    )


def _waiting(material: Material) -> float:
    """From each end that was written down to the start of the attempt after it."""
    story = [event for event in material.events if event.kind in ("begun", "first_step", "ended")]
    total, ended, begun = 0.0, None, None
    for event in story:
        if event.kind == "ended":
            ended, begun = event.time, None
        elif event.kind == "begun":
            begun = event.time
        if event.kind == "first_step" and ended is not None and begun is not None:
            start = min(begun, event.time - sum(_numbers(event.facts.get("phases")).values()))
            total, ended = total + max(0.0, start - ended), None
    return total


def speed(material: Material) -> Speed:
    """How fast it went."""
    seconds = [float(point.get("seconds") or 0) for point in material.steps]
    tokens = int(_sum(point.get("tokens") for point in material.steps))
    supervised = int(_sum(point.get("supervised_tokens") for point in material.steps))
    total = sum(seconds)
    return Speed(
        tokens=tokens,
        supervised=supervised,
        tokens_per_second=tokens / total if total else None,
        supervised_per_second=supervised / total if total else None,
        median_step_seconds=float(np.median(seconds)) if seconds else None,
    )


def before_and_after(material: Material) -> tuple[float | None, float | None]:
    """Evaluation loss of the base, and of what was exported (or of the last evaluation)."""
    losses = [(point["step"], number(point["eval_loss"])) for point in material.evaluations]
    base = next((loss for step, loss in losses if step == 0), None)
    trained = [loss for step, loss in losses if step > 0]
    outcome = material.outcome
    exported = outcome.train.eval_loss if outcome and outcome.train else None
    return base, exported if exported is not None else (trained[-1] if trained else None)


def peak_bytes(material: Material) -> int | None:
    """Highest memory of any rank of the last run that came to its end."""
    found = material.of_kind("trained")
    peaks = found[-1].facts.get("peaks") if found else None
    return max((int(one) for one in peaks), default=None) if isinstance(peaks, list) else None


def number(value: Any) -> float | None:
    """`value` where it is a finite number."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _numbers(document: object) -> dict[str, float]:
    items = document.items() if isinstance(document, dict) else ()
    return {str(name): found for name, value in items if (found := number(value)) is not None}


def _sum(values: Sequence[Any] | Any) -> float:
    return sum(found for value in values if (found := number(value)) is not None)
