"""The time series of one SFTJob, read from its spec, its status and what its rank 0 said last.

Pure. A finished job keeps its last values, which its status holds, for as long as the object is there: a training
shorter than a scrape interval is not lost, and no GPU waits for a scrape.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from pydantic import ValidationError

from sft_trainer.config import FailureClass, Progress
from sftjob_operator.api.objects import Manifest
from sftjob_operator.api.status import Status
from sftjob_operator.api.v1alpha1.workers import Workers
from sftjob_operator.failure import exit_class
from sftjob_operator.goodput import KINDS, kind
from sftjob_operator.planning.hardware import quantity_bytes
from sftjob_operator.policy.quota import present
from sftjob_operator.reports import parse_time

CLASSES = (
    *(str(cls) for cls in FailureClass),
    "Diverged",
    "Incomplete",
    "NodeLost",
    "Resized",
    "SpecChanged",
)
PHASES = (
    *("Pending", "Preparing", "Queued", "Starting", "Running", "Restarting", "Suspending", "Suspended"),
    *("Resizing", "Rejected", "Succeeded", "Failed"),
)
_WRITE_SECONDS = 10.0
"""Time so recent may just now be written down as something else, and a counter that goes back counts twice."""
_HOLDING = ("Running", "Starting", "Resizing", "Suspending")

Values = Iterable[tuple[tuple[str, ...], float | int | str | None]]
"""Values of the extra labels, and the number; None where there is none."""


@dataclass(frozen=True)
class Job:
    """What is known of one SFTJob."""

    spec: Mapping[str, Any]
    status: Status
    heard: Progress | None
    now: datetime

    @property
    def phase(self) -> str:
        """One of PHASES."""
        return self.status.phase if self.status.phase in PHASES else "Pending"


@dataclass(frozen=True)
class Series:
    """One metric of every job."""

    name: str
    text: str
    read: Callable[[Job], Values]
    labels: tuple[str, ...] = ()
    is_counter: bool = False


def of(body: Manifest, heard: Progress | None, now: datetime) -> Job:
    """The job in this object; a status that cannot be read counts as none."""
    try:
        status = Status.model_validate(body.get("status") or {})
    except ValidationError:
        status = Status()
    return Job(body.get("spec") or {}, status, heard, now)


def samples(series: Series, job: Job) -> Iterator[tuple[tuple[str, ...], float]]:
    """The samples of `series`; what is unknown is left out."""
    for labels, value in series.read(job):
        number = None if value is None else _number(value)
        if number is not None:
            yield labels, number


def _number(value: float | int | str) -> float | None:
    try:
        return float(value)
    except ValueError:
        return None


def _one(value: float | int | str | None) -> Values:
    return [((), value)]


def _said(live: str, stored: str | None = None) -> Callable[[Job], Values]:
    """What rank 0 said last, else what the status keeps of it."""

    def read(job: Job) -> Values:
        value = getattr(job.heard, live, None)
        if value is None and job.status.progress is not None and stored is not None:
            value = getattr(job.status.progress, stored)
        return _one(value)

    return read


def _time(text: str | None) -> float | None:
    moment = parse_time(text)
    return None if moment is None else moment.timestamp()


def _attempts(job: Job) -> Values:
    counts: dict[str, int] = {}
    for attempt in job.status.attempts:
        if attempt.state == "Failed":
            name = failure_label(attempt.reason, attempt.exit_code)
            counts[name] = counts.get(name, 0) + 1
    return [((name,), count) for name, count in sorted(counts.items())]


def failure_label(reason: str | None, exit_code: int | None) -> str:
    """One of CLASSES: a pod may give any word as its reason, and labels are bounded."""
    if reason in CLASSES:
        return str(reason)
    return str(FailureClass.CRASH if exit_code is None else exit_class(exit_code))


def _seconds(job: Job) -> Values:
    goodput = job.status.goodput
    if goodput is None:
        return []
    since, present = parse_time(goodput.accounted_time), kind(job.status)
    passed = 0.0 if since is None else (job.now - since).total_seconds()
    shown = max(int(passed - _WRITE_SECONDS), 0)
    return [
        ((name,), getattr(goodput, f"{name}_seconds") + (shown if name == present else 0)) for name in KINDS
    ]


def _activity(job: Job) -> str:
    """What running pods are busy with, in the words of the condition Running; empty while they do not run."""
    running = next((each for each in job.status.conditions if each.type == "Running"), None)
    return running.reason if running is not None and running.status == "True" else ""


def _gpus(job: Job) -> Values:
    workers = Workers.model_validate(job.spec.get("workers") or {})
    return _one(present(job.status, workers) if job.phase in _HOLDING else 0)


def _planned(job: Job) -> float | None:
    if job.status.plan is None:
        return None
    try:
        return float(quantity_bytes(job.status.plan.memory.per_gpu))
    except ValueError:
        return None


def _memory_ratio(job: Job) -> Values:
    planned, peak = _planned(job), None if job.heard is None else job.heard.peak_memory_bytes
    return _one(peak / planned if peak and planned else None)


def _newest_checkpoint(job: Job) -> Values:
    times = [_time(checkpoint.time) for checkpoint in job.status.checkpoints]
    return _one(max((time for time in times if time is not None), default=None))


JOB_SERIES: tuple[Series, ...] = (
    Series(
        "info",
        "Always 1; the labels say where it stands, and what its pods do.",
        lambda job: [((job.phase, _activity(job)), 1)],
        labels=("phase", "activity"),
    ),
    Series("step", "Optimizer steps the trainer has done.", _said("step", "step")),
    Series("steps", "Optimizer steps in all.", _said("total_steps", "total_steps")),
    Series("loss", "Mean training loss of the last step.", _said("loss", "loss")),
    Series("eval_loss", "Evaluation loss.", _said("eval_loss", "eval_loss")),
    Series("perplexity", "exp of the evaluation loss.", _said("perplexity", "perplexity")),
    Series("learning_rate", "Learning rate of the last step.", _said("learning_rate")),
    Series(
        "tokens_per_second",
        "Tokens per second over all ranks.",
        _said("tokens_per_second", "tokens_per_second"),
    ),
    Series("mfu_ratio", "Model FLOP/s of rank 0 as a share of its device's peak.", _said("mfu")),
    Series(
        "remaining_seconds",
        "Time to the end at the present speed.",
        _said("estimated_remaining_seconds", "estimated_remaining_seconds"),
    ),
    Series(
        "reported_timestamp_seconds",
        "Unix time of the last word of rank 0.",
        lambda job: _one(None if job.heard is None else _time(job.heard.time)),
    ),
    Series(
        "attempt",
        "Number of the newest attempt.",
        lambda job: _one(max((attempt.number for attempt in job.status.attempts), default=0)),
    ),
    Series(
        "restarts",
        "Failed attempts charged to failurePolicy.maxRestarts.",
        lambda job: _one(job.status.restarts),
    ),
    Series(
        "failed_attempts",
        "Failed attempts among the newest ten, by class of the failure.",
        _attempts,
        labels=("class",),
    ),
    Series("gpus", "GPUs of the pods that it has.", _gpus),
    Series(
        "last_verified_step",
        "Step of the newest verified checkpoint.",
        lambda job: _one(job.status.last_verified_step),
    ),
    Series(
        "last_checkpoint_timestamp_seconds",
        "Unix time of the newest verified checkpoint.",
        _newest_checkpoint,
    ),
    Series(
        "plan_memory_bytes",
        "Memory of one GPU (or CPU process) that the plan rests on.",
        lambda job: _one(_planned(job)),
    ),
    Series(
        "plan_memory_ratio",
        "Highest memory of rank 0 so far, as a share of the plan's estimate.",
        _memory_ratio,
    ),
    Series(
        "seconds",
        "What the job's time was spent on, by kind.",
        _seconds,
        labels=("kind",),
        is_counter=True,
    ),
    Series(
        "start_timestamp_seconds",
        "Unix time at which the first attempt was decided on.",
        lambda job: _one(_time(job.status.start_time)),
    ),
    Series(
        "completion_timestamp_seconds",
        "Unix time at which it completed or failed.",
        lambda job: _one(_time(job.status.completion_time)),
    ),
)
