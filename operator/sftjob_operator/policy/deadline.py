"""Time limits of the whole job: how long it may be active, and how long it stays once it has finished."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta

from sft_trainer.config import FailureClass
from sftjob_operator.api.status import AttemptStatus
from sftjob_operator.api.v1alpha1 import SFTJob
from sftjob_operator.effects import Delete, Effect
from sftjob_operator.failure import Failure
from sftjob_operator.observe import Observed
from sftjob_operator.policy.decision import Decision
from sftjob_operator.policy.quota import is_in_line
from sftjob_operator.policy.records import new_record
from sftjob_operator.policy.refusal import refused
from sftjob_operator.policy.restart import after_failure, failed
from sftjob_operator.reports import parse_time, rfc3339
from sftjob_operator.world import World

EXCEEDED = "DeadlineExceeded"
_REFUSED_SECONDS = 60.0
_REPORT_SECONDS = 600.0
"""A training that is exported and checked is not thrown away while its pod still writes samples and report."""


def exceeded(world: World, seen: Observed) -> Decision | None:
    """The verdict once spec.activeDeadlineSeconds have passed; None before, and where something has ended anyway.

    The pods get their grace period, in which the trainer commits a checkpoint. Where their deletion is refused there
    is no verdict yet: they would train on, and nobody would look at them again.
    """
    left, child = seconds_left(world, seen), seen.attempt
    if left is None or left > 0:
        return None
    if world.refusal is not None and child is not None and world.refusal.ref == child.ref:
        return replace(refused(world, world.job.status, world.refusal), requeue=_REFUSED_SECONDS)
    if seen.attempt_open and child is not None and (child.finished or child.failing is not None):
        return None  # first what it came to
    heard = world.progress
    if (
        heard is not None
        and (heard.attempt, heard.state) == (seen.number, "Done")
        and left > -_REPORT_SECONDS
    ):
        return None
    job = world.job
    message = (
        f"spec.activeDeadlineSeconds ({job.spec.active_deadline_seconds}) have passed since "
        f"{rfc3339(_active_since(job, seen) or world.now)}; what was verified can be gone on from under a new job"
    )
    status, effects = job.status, _ended(seen)
    if seen.attempt_open:
        record = seen.record or new_record(job, seen.number)
        why = Failure(FailureClass.INTERRUPTED, EXCEEDED, message)
        status = after_failure(world, record, why, world.now).status
    return failed(status, world.now, EXCEEDED, message, effects)


def seconds_left(world: World, seen: Observed) -> float | None:
    """Until the job has been active for too long; None where it may be for ever, or stands still."""
    limit, since = world.job.spec.active_deadline_seconds, _active_since(world.job, seen)
    child = seen.attempt if seen.attempt_open else None
    if limit is None or since is None or world.job.spec.suspend or (child is not None and child.suspended):
        return None
    if is_in_line(world.job.status) and not world.has_share:
        return None
    return (since + timedelta(seconds=limit) - world.now).total_seconds()


def _active_since(job: SFTJob, seen: Observed) -> datetime | None:
    """As with batch/v1: the start, or the end of the last suspension. The first attempt from then on may have been held
    for days, by a queue or for a quota, and counts from its own start.
    """
    start = parse_time(job.status.start_time)
    if start is None:
        return None
    suspended = next(
        (c for c in job.status.conditions if c.type == "Suspended" and c.status == "False"), None
    )
    resumed = parse_time(suspended.last_transition_time) if suspended else None
    since = max(start, resumed or start)
    over = [each for each in job.status.attempts if _is_over(each, since)]
    if over:
        is_first = (
            over[0].number == 1 or over[0] is not job.status.attempts[0]
        )  # else older ones are forgotten
        return max(since, parse_time(over[0].start_time) or since) if is_first else since
    if seen.attempt is None:  # it is about to be made
        return since if seen.number == 1 else None
    return max(since, seen.attempt.since or since)


def _is_over(record: AttemptStatus, since: datetime) -> bool:
    """Whether an attempt has ended after that time."""
    ended = parse_time(record.finished_time)
    return ended is not None and ended > since


def _ended(seen: Observed) -> tuple[Effect, ...]:
    child = seen.attempt if seen.attempt_open else None
    return () if child is None or child.deleting else (Delete(child.ref, child.uid),)


def seconds_kept(job: SFTJob, now: datetime) -> float | None:
    """Until a finished job goes, by spec.ttlSecondsAfterFinished; None = it stays."""
    finished, ttl = parse_time(job.status.completion_time), job.spec.ttl_seconds_after_finished
    if finished is None or ttl is None:
        return None
    return (finished + timedelta(seconds=ttl) - now).total_seconds()
