"""After a failed attempt: fail for good, or wait and go on from the last verified checkpoint."""

from __future__ import annotations

from datetime import datetime, timedelta
from itertools import takewhile

from sft_trainer.config import UNPREPARED, FailureClass
from sftjob_operator.api.status import AttemptStatus, Status
from sftjob_operator.api.v1alpha1.policies import FailurePolicy
from sftjob_operator.effects import Effect
from sftjob_operator.failure import Failure
from sftjob_operator.policy.decision import Answer, Decision, Say, Transition, not_running
from sftjob_operator.policy.records import with_outcome, with_record
from sftjob_operator.policy.relief import WAY_OUT, relief_words, relieved
from sftjob_operator.prepared import Prepared, stored
from sftjob_operator.reports import parse_time, rfc3339, sentence
from sftjob_operator.world import World

LONGEST_WAIT_SECONDS = 600.0
MOST_DISRUPTIONS = 100
"""A cluster that takes every attempt is no place to train; each costs a model load."""
INCOMPLETE = "Incomplete"
"""Reason of an attempt that gave up before all its pods ran: a queue for room, as long as it takes."""
RESIZED = "Resized"
"""Reason of an attempt that was ended for one of another size: that one need not wait."""
_RECORD_MESSAGE = 512


def after_failure(
    world: World,
    record: AttemptStatus,
    why: Failure,
    finished: datetime | None,
    effects: tuple[Effect, ...] = (),
) -> Answer:
    """Settle an attempt that has failed; the verdict is final where it is a Decision."""
    status, policy = world.job.status, world.job.spec.failure_policy
    outcome = why.outcome
    ended = record.model_copy(
        update={
            "state": "Failed",
            "reason": why.reason,
            "message": sentence(why.message, _RECORD_MESSAGE),
            "exit_code": why.exit_code,
            "node": why.node,
            "finished_time": rfc3339(finished or world.now),
            "last_step": outcome.last_step if outcome and outcome.last_step is not None else record.last_step,
            "resumed_from_step": (
                outcome.resumed_from_step
                if outcome and outcome.resumed_from_step is not None
                else record.resumed_from_step
            ),
        }
    )
    # A plan of the operator's own that was too large is not the job's fault; there are only so many smaller ones.
    charged = why.charged and relieved(with_record(status, ended)) is None
    ended = ended.model_copy(update={"charged": charged})
    status = with_outcome(with_record(status, ended), outcome, world.now)
    over = _budget(policy, why, status, charged)
    if why.fatal or over is not None:
        message = why.message if over is None else f"{over}; the last attempt, {record.number}: {why.message}"
        if why.cls is FailureClass.GPU_OUT_OF_MEMORY:
            message = f"{message}; {WAY_OUT}"
        return failed(status, world.now, why.reason, message, effects)
    counts = {
        "restarts": status.restarts + charged,
        "disruptions": status.disruptions + _is_disruption(why),
    }
    again = {"prepared": _forgotten(status)} if why.reason == UNPREPARED else {}
    return Transition(status.model_copy(update={**counts, **again}), effects)


def _forgotten(status: Status) -> dict[str, object] | None:
    """What is kept of a preparation whose result is gone: that another one is due."""
    kept = stored(status)
    return None if kept is None else Prepared(input=kept.input, tries=kept.tries + 1).json_value()


def failed(
    status: Status, at: datetime, reason: str, message: str, effects: tuple[Effect, ...] = ()
) -> Decision:
    """Failed=True since `at`."""
    conditions = {
        "Failed": Say("True", reason, message),
        "Complete": Say("False", "Failed", ""),
        "Running": Say("False", "Failed", message),
    }
    return Decision(status.model_copy(update={"completion_time": rfc3339(at)}), conditions, effects)


def wait(world: World, record: AttemptStatus | None) -> Decision | None:
    """The pause before the attempt after `record`; None when it is over or not due, or nothing has failed."""
    finished = None if record is None else parse_time(record.finished_time)
    if record is None or finished is None or record.reason == RESIZED:
        return None
    status = world.job.status
    failures = status.restarts if record.charged else _in_a_row(status)
    delay = wait_seconds(world.job.spec.failure_policy, failures)
    due = finished + timedelta(seconds=delay)
    if world.now >= due:
        return None
    step = status.last_verified_step
    start = "from the beginning" if step is None else f"from the checkpoint of step {step}"
    message = (
        f"attempt {record.number} failed ({record.reason}): {record.message}; "
        f"attempt {record.number + 1} starts at {rfc3339(due)} {start}{relief_words(status)}"
    )
    remaining = (due - world.now).total_seconds()
    # What had no gang (it stood still) is not about to have it back: it has to ask for a share of the quota again.
    reason = "Restarting" if world.has_share else "Pending"
    return Decision(status, not_running(reason, message), requeue=max(remaining, 0.1))


def wait_seconds(policy: FailurePolicy, failures: int) -> float:
    """backoffSeconds, doubled for each earlier failure, at most ten minutes."""
    doubled = policy.backoff_seconds * 2.0 ** min(max(failures - 1, 0), 16)
    return min(doubled, LONGEST_WAIT_SECONDS)


def _in_a_row(status: Status) -> int:
    """How often the newest attempts have waited for room in vain: while there is none, the GPUs that they take
    meanwhile are better left to others.
    """
    newest_first = reversed(status.attempts)
    return max(1, sum(1 for _ in takewhile(lambda attempt: attempt.reason == INCOMPLETE, newest_first)))


def _is_disruption(why: Failure) -> bool:
    return not why.charged and why.reason != INCOMPLETE


def _budget(policy: FailurePolicy, why: Failure, status: Status, charged: bool) -> str | None:
    """Why there is no further attempt; None when there is."""
    if charged and status.restarts >= policy.max_restarts:
        return f"spec.failurePolicy.maxRestarts ({policy.max_restarts}) is used up"
    if _is_disruption(why) and status.disruptions >= MOST_DISRUPTIONS:
        return f"the cluster has taken {MOST_DISRUPTIONS} attempts"
    return None
