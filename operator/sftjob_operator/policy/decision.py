"""What a policy answers: effects, the status without its conditions, and what the conditions are to say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from sftjob_operator.api.status import Status
from sftjob_operator.effects import Effect
from sftjob_operator.planning.batch import SpecError
from sftjob_operator.reports import parse_time
from sftjob_operator.world import World

STOPPING_SECONDS = 5.0
"""Until the next look at pods that were asked to stop."""


class Say(NamedTuple):
    """A condition's answer."""

    status: Literal["True", "False", "Unknown"]
    reason: str
    message: str = ""


@dataclass(frozen=True)
class Decision:
    """The end of a pass. Conditions that are not named keep to what `policy.baseline` derives."""

    status: Status
    conditions: Mapping[str, Say] = field(default_factory=dict)
    effects: tuple[Effect, ...] = ()
    requeue: float | None = None


@dataclass(frozen=True)
class Transition:
    """Something has ended and is now written down: the pass goes on with this status."""

    status: Status
    effects: tuple[Effect, ...] = ()


Answer = Decision | Transition


def not_running(reason: str, message: str) -> dict[str, Say]:
    """Running=False with the one reason why."""
    return {"Running": Say("False", reason, message)}


def not_accepted(status: Status, wrong: SpecError) -> Decision:
    """The spec cannot be worked on: the next pass is when something changes."""
    says = {
        "Accepted": Say("False", wrong.reason, wrong.message),
        **not_running("NotAccepted", wrong.message),
    }
    return Decision(status, says)


def age(world: World) -> float:
    """Seconds since the SFTJob was created."""
    created = parse_time(world.job.metadata.get("creationTimestamp"))
    return 0.0 if created is None else max((world.now - created).total_seconds(), 0.0)


def revisit(age: float) -> float:
    """Seconds until the next look at something `age` seconds old: after 5, 15, 30, 60 s, then every 60."""
    for due in (5.0, 15.0, 30.0, 60.0):
        if age < due - 0.5:
            return due - age
    return 60.0
