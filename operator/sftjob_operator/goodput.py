"""What a job's time is spent on: seconds by kind, kept in its status so that they survive the operator.

Each write of the status charges the time since the last one to what the job was doing then. Nothing is measured on
the side: what was being done is what the conditions said, and whether a step was new is what the attempts say.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from sftjob_operator.api.status import GoodputStatus, Status
from sftjob_operator.reports import parse_time, rfc3339

KINDS = ("productive", "checkpoint", "lost", "restart", "preparing", "queued", "suspended")
WITH_PODS = ("productive", "checkpoint", "lost", "restart")
"""Kinds while which the job has its pods, and so its GPUs, or is about to have them back."""

_PODS = {
    "Starting": "restart",
    "TrainingSteps": "productive",
    "Evaluating": "productive",
    "SavingCheckpoint": "checkpoint",
    "Exporting": "productive",
}
_NO_PODS = {
    **dict.fromkeys(("ContainerCreating", "Resuming", "Restarting", "Stopping", "Resizing"), "restart"),
    **dict.fromkeys(("Finishing", "ImagePull", "ContainerConfig", "NodeLost", "NodeNotReady"), "restart"),
    "Preparing": "preparing",
    "Suspending": "suspended",
    "Suspended": "suspended",
}


def kind(status: Status) -> str | None:
    """What a job with this status spends its time on, one of KINDS; None when it is over or nobody has looked."""
    found = {condition.type: condition for condition in status.conditions}
    true = {name for name, condition in found.items() if condition.status == "True"}
    if not found or true & {"Complete", "Failed"}:
        return None
    if "Suspended" in true:
        return "suspended"
    running = found.get("Running")
    if running is None:  # somebody else's conditions
        return None
    if "Running" not in true:
        spent_on = _NO_PODS.get(running.reason, "queued")
        return "preparing" if spent_on == "restart" and status.start_time is None else spent_on
    spent_on = _PODS.get(running.reason, "productive")
    return "lost" if spent_on == "productive" and _repeats(status) else spent_on


def charged(old: Status, now: datetime) -> GoodputStatus:
    """The seconds up to `now`, of a job whose status was `old` until then."""
    before = old.goodput or GoodputStatus(accounted_time=rfc3339(now))
    spent_on, since = kind(old), parse_time(before.accounted_time)
    passed = 0 if since is None else int((now - since).total_seconds())
    if passed < 0:  # another machine's clock
        return before
    update: dict[str, object] = {"accounted_time": rfc3339(now)}
    if spent_on is not None and since is not None:
        name = f"{spent_on}_seconds"
        update[name] = getattr(before, name) + passed
        update["accounted_time"] = rfc3339(since + timedelta(seconds=passed))
    counted = before.model_copy(update=update)
    return counted.model_copy(update={"percent": percent(counted)})


def percent(goodput: GoodputStatus) -> int | None:
    """Productive seconds as a share of all with pods; None before there were any."""
    total = sum(getattr(goodput, f"{name}_seconds") for name in WITH_PODS)
    return round(100 * goodput.productive_seconds / total) if total else None


def _repeats(status: Status) -> bool:
    """Whether the present attempt makes steps that an earlier one had made before it was lost."""
    if status.progress is None or len(status.attempts) < 2:
        return False
    return status.progress.step < max(attempt.last_step or 0 for attempt in status.attempts[:-1])
