"""From a decision to the stored status and its Events: conditions with their times, and the phase."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from sftjob_operator.api.objects import Event
from sftjob_operator.api.status import CONDITION_TYPES, Condition, Status
from sftjob_operator.policy.decision import Say
from sftjob_operator.reports import rfc3339, sentence

MESSAGE_LIMIT = 2048
_EVENT_LIMIT = 1000  # the API server takes 1024

_PHASES = {
    "Preparing": "Preparing",
    "Queued": "Queued",
    "Unschedulable": "Queued",
    "NamespaceQuota": "Queued",
    "QuotaExceeded": "Queued",
    "ContainerCreating": "Starting",
    "Resuming": "Starting",
    "Restarting": "Restarting",
    "Finishing": "Running",
    "Stopping": "Restarting",
    "Suspending": "Suspending",
    "Resizing": "Resizing",
}
_TROUBLES = frozenset(
    {
        "ContainerConfig",
        "Forbidden",
        "ImagePull",
        "KindUnnoticed",
        "NamespaceQuota",
        "NodeLost",
        "NodeNotReady",
        "PodsNotCreated",
        "QuotaExceeded",
        "Restarting",
        "SecretMissing",
        "Unschedulable",
        "VolumeLost",
        "VolumeMissing",
        "VolumeNotShared",
        "VolumePending",
    }
)
"""Reasons of Running=False that get an Event of their own although the status does not flip."""
PASSING = frozenset({"TrainingSteps", "Evaluating", "SavingCheckpoint"})
"""Reasons of Running=True that follow one another all the time while a job trains: no news."""


def conditions(old: Status, says: Mapping[str, Say], generation: int, now: datetime) -> list[Condition]:
    """All known types, and after them those of others, untouched; lastTransitionTime moves only when a status flips."""
    before = {condition.type: condition for condition in old.conditions}
    result = []
    for kind in CONDITION_TYPES:
        say, known = says[kind], before.get(kind)
        same = known is not None and known.status == say.status
        result.append(
            Condition(
                type=kind,
                status=say.status,
                reason=say.reason,
                message=sentence(say.message, MESSAGE_LIMIT),
                last_transition_time=known.last_transition_time if known and same else rfc3339(now),
                observed_generation=generation,
            )
        )
    return [*result, *(other for kind, other in before.items() if kind not in CONDITION_TYPES)]


def standing(status: Status, found: list[Condition]) -> Status:
    """`status` without a time that remains, where nothing runs: what was done and how fast stays."""
    is_moving = any(one.type in ("Running", "Complete") and one.status == "True" for one in found)
    if is_moving or status.progress is None:
        return status
    stopped = {"estimated_remaining_seconds": None, "eta": None}
    return status.model_copy(update={"progress": status.progress.model_copy(update=stopped)})


def phase(found: list[Condition]) -> str:
    """One word for the column; for people only."""
    by_type = {condition.type: condition for condition in found}
    for kind, word in (
        ("Complete", "Succeeded"),
        ("Failed", "Failed"),
        ("Suspended", "Suspended"),
        ("Running", "Running"),
    ):
        if by_type[kind].status == "True":
            return word
    if by_type["Accepted"].status == "False":
        return "Rejected"
    return _PHASES.get(by_type["Running"].reason, "Pending")


def events(old: Status, found: list[Condition]) -> tuple[Event, ...]:
    """One Event per condition that flipped, and per new trouble."""
    before = {condition.type: condition for condition in old.conditions}
    result = []
    for condition in found:
        if _is_news(before.get(condition.type), condition):
            text = sentence(condition.message, _EVENT_LIMIT)
            result.append(Event("Warning" if _is_bad(condition) else "Normal", condition.reason, text))
    return tuple(result)


def _is_news(before: Condition | None, after: Condition) -> bool:
    if before is not None and before.status == after.status:
        new_reason = before.reason != after.reason
        return new_reason and after.type == "Running" and after.reason in _TROUBLES
    if after.status == "True":
        return True
    if after.status == "Unknown":
        return False
    if after.type in ("Accepted", "Prepared", "Planned"):
        return True
    # That Suspended or Failed is over is no news of its own: what comes next is.
    return after.type == "Running" and after.reason in _TROUBLES


def _is_bad(condition: Condition) -> bool:
    if condition.type == "Failed":
        return condition.status == "True"
    if condition.type in ("Accepted", "Prepared", "Planned"):
        return condition.status == "False"
    return condition.type == "Running" and condition.reason in _TROUBLES
