"""status.attempts: one record per attempt, the newest ten, and what they take over from pods' reports."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sft_trainer.config import CheckpointFact, Outcome
from sftjob_operator.api import names
from sftjob_operator.api.status import AttemptStatus, CheckpointStatus, Status
from sftjob_operator.api.v1alpha1 import SFTJob
from sftjob_operator.batchjob import BatchJob
from sftjob_operator.planning.hardware import mebibytes
from sftjob_operator.reports import decimal, rfc3339, sentence, timestamp

KEPT = 10


def new_record(job: SFTJob, number: int) -> AttemptStatus:
    """An attempt that is about to be made: no start of it yet."""
    return AttemptStatus(number=number, state="Pending", job_name=names.attempt(job.name, number), runs=0)


def made(record: AttemptStatus) -> AttemptStatus:
    """The record of an attempt whose Job exists."""
    is_new = (record.state, record.runs) == ("Pending", 0)
    return record.model_copy(update={"runs": 1}) if is_new else record


def live_record(record: AttemptStatus, child: BatchJob) -> AttemptStatus:
    """The record of an attempt whose Job lives; `runs` counts its starts, the first of which is `start_time`."""
    if child.suspended:
        # A queue may suspend a Job as it is created: that was no start.
        started = {} if record.state != "Pending" else {"runs": max(record.runs - 1, 0), "start_time": None}
        return record.model_copy(update={"state": "Suspended", **started})
    runs = record.runs + (record.state == "Suspended")
    state = "Running" if child.all_ready or record.state == "Running" else "Pending"
    start_time = record.start_time or (rfc3339(child.since) if child.since else None)
    return record.model_copy(update={"state": state, "runs": runs, "start_time": start_time})


def with_record(status: Status, record: AttemptStatus) -> Status:
    """`status` with this record added or replaced."""
    others = [each for each in status.attempts if each.number != record.number]
    attempts = sorted([*others, record], key=lambda each: each.number)[-KEPT:]
    return status.model_copy(update={"attempts": attempts})


def with_outcome(status: Status, outcome: Outcome | None, now: datetime) -> Status:
    """`status` with the checkpoints a pod has told of as it ended."""
    if outcome is None:
        return status
    return with_checkpoints(status, outcome.checkpoints, outcome.last_verified_step, now)


def with_checkpoints(
    status: Status, facts: Sequence[CheckpointFact], verified: int | None, now: datetime
) -> Status:
    """`status` with the checkpoints that there are; nothing told changes nothing."""
    update: dict[str, Any] = {}
    if facts:
        named = {fact.name: fact for fact in facts}
        newest = sorted(named.values(), key=lambda fact: fact.step)[-KEPT:]
        update["checkpoints"] = [_checkpoint(fact, now) for fact in newest]
    if verified is not None:
        update["last_verified_step"] = verified
    return status.model_copy(update=update)


def _checkpoint(fact: CheckpointFact, now: datetime) -> CheckpointStatus:
    return CheckpointStatus(
        name=sentence(fact.name, 253),
        step=fact.step,
        attempt=fact.attempt,
        verified=True,
        size=mebibytes(fact.bytes),
        loss=decimal(fact.loss),
        eval_loss=decimal(fact.eval_loss),
        time=timestamp(fact.time, now),
    )
