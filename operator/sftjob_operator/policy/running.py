"""An attempt that lives: its pods start, run, report progress, or say why they do not."""

from __future__ import annotations

from sft_trainer.config import Progress
from sftjob_operator.api import names
from sftjob_operator.api.status import AttemptStatus, ProgressStatus, Status
from sftjob_operator.batchjob import BatchJob
from sftjob_operator.desired.job import attempt_spec
from sftjob_operator.pods import Trouble, of_job, trouble
from sftjob_operator.policy.accept import objection
from sftjob_operator.policy.decision import Decision, Say, not_running, revisit
from sftjob_operator.policy.records import live_record, with_checkpoints, with_record
from sftjob_operator.reports import decimal, rfc3339
from sftjob_operator.world import World

_LATER = "the changed spec takes effect with the next attempt"
_FASTEST = 1e15  # tokens per second; more is nonsense
_STATES = {
    "Starting": ("Starting", "the ranks load the model"),
    "Training": ("TrainingSteps", ""),
    "Evaluating": ("Evaluating", "evaluating"),
    "Saving": ("SavingCheckpoint", "saving a checkpoint"),
    "Exporting": ("Exporting", "writing and checking the export"),
    "Done": ("Exporting", "the pods finish"),
}


def watch(world: World, record: AttemptStatus, child: BatchJob, obstacle: str | None = None) -> Decision:
    """Status of the open attempt `record` with the living Job `child`, which nobody suspends.

    `obstacle` is why another number of nodes that the spec asks for is not taken up.
    """
    heard = world.progress if world.progress and world.progress.attempt == record.number else None
    record = live_record(record, child)
    if heard is not None:
        told = {"last_step": heard.step} if heard.total_steps else {}
        record = record.model_copy(update={**told, "resumed_from_step": heard.resumed_from_step})
    status = with_progress(with_record(world.job.status, record), heard, world)
    if not child.all_ready:
        why = not_ready(world, child)
        message = f"attempt {record.number}: {why.message}"
        return Decision(status, not_running(why.reason, message), requeue=revisit(child.age(world.now)))
    running = _running(record, heard, status)
    if obstacle is not None:
        words = f"spec.workers.nodes: {world.job.spec.workers.nodes} is not taken up: {obstacle}"
        running = running._replace(message=f"{running.message}; {words}")
    elif is_outdated(world, child):
        running = running._replace(message=f"{running.message}; {_LATER}")
    return Decision(status, {"Running": running}, requeue=world.settings.poll_seconds)


def not_ready(world: World, child: BatchJob) -> Trouble:
    """Why the pods of a living Job do not run."""
    if world.pods is None:
        return Trouble("ContainerCreating", f"{child.ready} of {child.pods} pods are ready")
    return trouble(of_job(world.pods, child), child, world.now)


def is_outdated(world: World, child: BatchJob) -> bool:
    """The spec, which can be worked on, asks for another Job than this one by now."""
    made_of = child.annotations.get(names.ANNOTATION_SPEC)
    job = world.job
    if made_of in (None, attempt_spec(job)):
        return False
    return objection(job, world.settings, has_share=world.has_share) is None


def with_progress(status: Status, heard: Progress | None, world: World) -> Status:
    """`status` with what rank 0 says; its time is ours and moves only when something has changed."""
    if heard is None:
        return status
    status = with_checkpoints(status, heard.checkpoints, heard.last_verified_step, world.now)
    if heard.total_steps == 0:  # a new attempt still starts: the old one's progress is worth more than 0 of 0
        return status
    told, old = progress_of(heard), status.progress
    if old is not None and told == old.model_copy(update={"last_updated_time": None}):
        return status
    told = told.model_copy(update={"last_updated_time": rfc3339(world.now)})
    return status.model_copy(update={"progress": told})


def progress_of(heard: Progress) -> ProgressStatus:
    """For the status."""
    remaining, speed = heard.estimated_remaining_seconds, heard.tokens_per_second
    known = speed is not None and 0 <= speed < _FASTEST  # false for NaN
    return ProgressStatus(
        step=heard.step,
        total_steps=heard.total_steps,
        display=f"{heard.step}/{heard.total_steps}",
        progress_percentage=min(100 * heard.step // heard.total_steps, 100),
        estimated_remaining_seconds=remaining,
        eta=None if remaining is None else duration(remaining),
        loss=decimal(heard.loss),
        eval_loss=decimal(heard.eval_loss),
        perplexity=decimal(heard.perplexity),
        tokens_per_second=int(speed) if known and speed is not None else None,
        mfu_percent=_percent(heard.mfu),
    )


def _percent(share: float | None) -> int | None:
    """A share that a pod told; None for what can be none."""
    return round(100 * share) if share is not None and 0 <= share <= 1 else None  # false for NaN


def duration(seconds: int) -> str:
    """For a column: 45s, 12m, 1h52m, 3d4h."""
    minutes, hours, days = seconds // 60, seconds // 3600, seconds // 86400
    if days:
        return f"{days}d{hours % 24}h"
    if hours:
        return f"{hours}h{minutes % 60}m"
    return f"{minutes}m" if minutes else f"{seconds}s"


def _running(record: AttemptStatus, heard: Progress | None, status: Status) -> Say:
    """Running=True: what the ranks do. `heard` is None until rank 0 answers, and when it does not."""
    silent = "Starting" if record.last_step is None else "Training"
    reason, words = _STATES[silent if heard is None else heard.state]
    step = ""
    if status.progress is not None and record.last_step is not None:
        step = f"step {status.progress.step} of {status.progress.total_steps}"
    return Say("True", reason, ", ".join(part for part in (f"attempt {record.number}", step, words) if part))
