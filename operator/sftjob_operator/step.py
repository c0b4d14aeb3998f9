"""`step`: one pass of the operator as a pure function, the only function of the core that the shell calls.

Effects are carried out first, in order; then the status is written; then the events are posted; then the key
is looked at again after `requeue_after` seconds (None: something will happen to it).
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from pydantic import ValidationError

from sftjob_operator.api.objects import Event, Manifest, Ref
from sftjob_operator.api.status import Condition, Status
from sftjob_operator.api.v1alpha1 import SFTJob
from sftjob_operator.effects import Delete, Effect
from sftjob_operator.goodput import charged
from sftjob_operator.observe import hands_off
from sftjob_operator.policy.baseline import baseline
from sftjob_operator.policy.deadline import seconds_kept
from sftjob_operator.policy.decide import decide
from sftjob_operator.policy.decision import Say
from sftjob_operator.reports import parse_time, sentence
from sftjob_operator.status import PASSING, conditions, events, phase, standing
from sftjob_operator.world import World

_REFUSED_SECONDS = 600.0  # until a deletion that was refused is tried again


@dataclass(frozen=True)
class Step:
    """What is to be done."""

    effects: tuple[Effect, ...] = ()
    status: dict[str, Any] | None = None
    """The whole status as JSON (camelCase) to replace the stored one. None = leave it: nothing is new, or
    only progress is and it was written a moment ago (Settings.status_seconds)."""
    events: tuple[Event, ...] = ()
    """To be posted after the status was written."""
    requeue_after: float | None = None


def step(world: World) -> Step:
    """The next step for this SFTJob. Deterministic; raises nothing for whatever a user or a pod wrote."""
    job, old = world.job, world.job.status
    if job.metadata.get("deletionTimestamp"):
        return Step()  # owner references do the rest
    if hands_off(job) is not None:
        return Step()
    decision = decide(world)
    if decision is None:
        return _finished(world)
    says = {**baseline(job, decision.status, world.settings), **decision.conditions}
    found = conditions(old, says, job.generation, world.now)
    new = standing(decision.status, found).model_copy(
        update={"conditions": found, "phase": phase(found), "observed_generation": job.generation}
    )
    pause = _until_written(old, new, world)
    return Step(
        effects=decision.effects,
        status=as_json(_accounted(old, new, world.now)) if pause == 0 else None,
        events=events(old, found),
        requeue_after=min(decision.requeue, pause) if decision.requeue and pause else decision.requeue,
    )


def _accounted(old: Status, new: Status, now: datetime) -> Status:
    """`new` with the time up to now; time alone is no reason to write."""
    ended = parse_time(new.completion_time)  # it may have been long ago, with the operator away
    return new.model_copy(update={"goodput": charged(old, now if ended is None else min(now, ended))})


def _finished(world: World) -> Step:
    """Nothing more is done for it, but to delete it when its time is over."""
    job, old = world.job, world.job.status
    left = seconds_kept(job, world.now)
    if left is not None and left <= 0 and world.refusal is None:
        return Step(effects=(Delete(Ref(job.api_version, job.kind, job.namespace, job.name), job.uid),))
    settled = old.model_copy(update={"observed_generation": job.generation})
    again = _REFUSED_SECONDS if world.refusal is not None else left
    return Step(status=None if settled == old else as_json(settled), requeue_after=again)


def unreadable(manifest: Manifest, words: str, now: datetime) -> Step:
    """The step for an SFTJob that `policy.accept` could not read: Accepted=False/InvalidSpec."""
    says = {"Accepted": Say("False", "InvalidSpec", words)}
    if not (manifest.get("status") or {}).get("startTime"):  # what runs, runs on
        says["Running"] = Say("False", "NotAccepted", words)
    return _instead(manifest, says, now)


def broken(manifest: Manifest, error: Exception, now: datetime) -> Step:
    """The step for an SFTJob over which the operator itself stumbles: what runs, runs on."""
    words = (
        f"the operator failed on this SFTJob ({type(error).__name__}: {sentence(str(error), 300)}): "
        "report it with the traceback from the operator's log"
    )
    return _instead(manifest, {"Accepted": Say("False", "InternalError", words)}, now)


def _instead(manifest: Manifest, says: Mapping[str, Say], now: datetime) -> Step:
    """Only these conditions change; nothing else of the object is trusted or touched."""
    stored = manifest.get("status") or {}
    try:
        old = Status.model_validate({"conditions": stored.get("conditions") or []})
    except ValidationError:
        return Step()  # written by someone else: not ours to replace
    generation = int(manifest["metadata"].get("generation", 1))
    known = {
        condition.type: Say(condition.status, condition.reason, condition.message)
        for condition in old.conditions
    }
    unknown = {
        **dict.fromkeys(("Prepared", "Planned"), Say("Unknown", "NotStarted")),
        "Running": Say("False", "Pending"),
        "Suspended": Say("False", "NotSuspended"),
        **dict.fromkeys(("Complete", "Failed"), Say("False", "InProgress")),
    }
    found = conditions(old, {**unknown, **known, **says}, generation, now)
    said = as_json(Status(conditions=found, phase=phase(found), observed_generation=generation))
    new = {**stored, **{key: said[key] for key in ("conditions", "phase", "observedGeneration")}}
    return Step(status=None if new == stored else new, events=events(old, found))


def as_json(status: Status) -> dict[str, Any]:
    """As the API has it: camelCase, without what is unset or empty."""
    dumped = status.model_dump(mode="json", by_alias=True, exclude_none=True)
    return {key: value for key, value in dumped.items() if value != []}


def _until_written(old: Status, new: Status, world: World) -> int | None:
    """Whole seconds until `new` may be written: 0 = now. None where nothing is new.

    Rounded up: a fraction that is left would be looked at again before the clock has moved, and again.
    """
    if old == new:
        return None
    written = parse_time(old.progress.last_updated_time) if old.progress else None
    if written is None or _essence(old) != _essence(new):
        return 0
    waited = (world.now - written).total_seconds()
    pause = world.settings.status_seconds * _jitter(world.job)
    return math.ceil(pause - waited) if 0 <= waited < pause else 0


def _jitter(job: SFTJob) -> float:
    """1.05 to 1.15, always the same for a job: jobs started together do not write together for ever, and none writes
    early because the time of its last write is kept in whole seconds.
    """
    return 1.05 + zlib.crc32(f"{job.uid}{job.name}".encode()) % 1000 / 10000


def _essence(status: Status) -> Status:
    """Without what changes while nothing happens."""
    return status.model_copy(
        update={
            "progress": None,
            "checkpoints": [],
            "last_verified_step": None,
            "conditions": [_quiet(condition) for condition in status.conditions],
            "attempts": [
                attempt.model_copy(update={"last_step": None, "resumed_from_step": None})
                for attempt in status.attempts
            ],
        }
    )


def _quiet(condition: Condition) -> Condition:
    if condition.type != "Running" or condition.status != "True":
        return condition
    reason = "TrainingSteps" if condition.reason in PASSING else condition.reason
    return condition.model_copy(update={"message": "", "reason": reason})
