"""The open attempt: it lives, it has ended well, or it has ended otherwise."""

from __future__ import annotations

from dataclasses import replace

from sft_trainer.config import FailureClass, TrainResult
from sftjob_operator.api.objects import Manifest, Ref
from sftjob_operator.api.status import AttemptStatus, ProgressStatus, ResultStatus, Status
from sftjob_operator.api.v1alpha1 import SFTJob
from sftjob_operator.batchjob import BatchJob
from sftjob_operator.effects import Delete
from sftjob_operator.failure import Failure, disrupted, failure, node_lost, without_result
from sftjob_operator.observe import Observed
from sftjob_operator.pods import PodEnd, lost_pod, of_job, pod_end
from sftjob_operator.policy.decision import STOPPING_SECONDS, Answer, Decision, Say, not_accepted, not_running
from sftjob_operator.policy.quota import no_room, present, too_large, within_share
from sftjob_operator.policy.records import live_record, made, new_record, with_outcome, with_record
from sftjob_operator.policy.resize import is_resized, obstacle, resize, resized_words, was_stopped_to_resize
from sftjob_operator.policy.restart import INCOMPLETE, RESIZED, after_failure
from sftjob_operator.policy.running import is_outdated, watch
from sftjob_operator.policy.suspend import hold, paused
from sftjob_operator.reports import decimal, rfc3339, sentence
from sftjob_operator.world import World

_AT_ONCE = 0.0
_AGAIN_SECONDS = 1.0


def follow(world: World, seen: Observed) -> Answer:
    """What becomes of the newest attempt, which is not settled."""
    job, child = world.job, seen.attempt
    record = seen.record or new_record(job, seen.number)
    if child is None:  # the API server itself was asked (needs.jobs)
        return after_failure(world, record, _deleted(job, record), None)
    record = made(record)
    pods = None if world.pods is None else of_job(world.pods, child)
    lost = None if pods is None else lost_pod(pods, world.now)
    if child.deleting:
        return _being_deleted(world, seen, record, child, lost)
    if child.finished or child.failing is not None:
        return _ended(world, record, child, pods, lost)
    if _is_to_be_replaced(world, record, child):
        return _replaced(world, record, child)
    # What has stopped goes on in its own size where there is no room for the other one any more.
    resized = is_resized(within_share(world) if child.suspended else world, child)
    if resized and (child.suspended or record.state == "Running"):
        return _resized(world, seen, record, child, lost)
    if job.spec.suspend or child.suspended:
        record = live_record(record, child)
        status = with_record(job.status, record)
        return hold(world, status, child) if job.spec.suspend else _stands_still(world, status, child)
    if lost is not None:
        return _lost(world, record, child, lost)
    return watch(world, record, child)


def _being_deleted(
    world: World, seen: Observed, record: AttemptStatus, child: BatchJob, lost: Manifest | None
) -> Answer:
    """Its pods save and stop: it stays until they are gone."""
    if lost is not None:
        return _lost(world, record, child, lost)
    if world.job.spec.suspend:
        return hold(world, world.job.status, child)
    if child.queue is not None and child.pods != world.job.spec.workers.nodes:
        return resize(world, seen, child)
    message = f"attempt {record.number}: Job {child.name} is being deleted"
    return Decision(world.job.status, not_running("Stopping", message), requeue=STOPPING_SECONDS)


def _deleted(job: SFTJob, record: AttemptStatus) -> Failure:
    """Why its Job is gone: we have stopped it (policy.suspend.stop), or somebody has deleted it."""
    pods = job.status.nodes
    if job.spec.suspend:
        return Failure(FailureClass.INTERRUPTED, FailureClass.INTERRUPTED, "stopped by a suspension")
    if pods not in (None, job.spec.workers.nodes) and record.state == "Running":
        return disrupted(resized_words(job, pods), RESIZED)
    return disrupted(f"its Job {record.job_name} was deleted")


def _stands_still(world: World, status: Status, child: BatchJob) -> Decision:
    """What we have suspended goes on when there is room for it again; what a queue holds is the queue's."""
    job = world.job
    if (
        child.suspended_by_us
        and not world.has_share
        and (wrong := too_large(job, world.settings)) is not None
    ):
        return not_accepted(status, wrong)
    full = no_room(world, present(job.status, job.spec.workers)) if child.suspended_by_us else None
    return paused(status, child) if full is None else replace(full, status=status)


def _ended(
    world: World,
    record: AttemptStatus,
    child: BatchJob,
    pods: list[Manifest] | None,
    lost: Manifest | None,
) -> Answer:
    if pods is None:  # seen only after this pass had read what it needs
        status = with_record(world.job.status, record)
        return Decision(
            status, not_running("Stopping", f"attempt {record.number} has ended"), requeue=_AGAIN_SECONDS
        )
    ends = [end for end in map(pod_end, pods) if end is not None]
    if child.complete:
        result = _result(ends)
        if result is not None:
            return _complete(world, record, child, result)
        if not pods:
            why = disrupted("its pods are gone, and its result with them")
            return after_failure(world, record, why, child.finished_time)
        what = "the pod with index 0 left no result: was its export checked?"
        return after_failure(world, record, without_result(what), child.finished_time)
    if not child.finished and len(ends) < len(pods) and lost is None:
        words = sentence(child.failing or "", 300)
        message = f"attempt {record.number} has failed, its other pods are stopping: {words}"
        status = with_record(world.job.status, record)
        return Decision(status, not_running("Stopping", message), requeue=STOPPING_SECONDS)
    stopping = world.job.spec.suspend or child.suspended
    effects = () if child.finished or lost is None else (Delete(child.ref, child.uid),)
    why = failure(child, ends, stopping=stopping)
    if why.cls is FailureClass.PEER_LOST:
        why = _of_peers(record, why, lost)
    if why.cls is FailureClass.INTERRUPTED and was_stopped_to_resize(world.job, child):
        why = replace(why, reason=RESIZED, message=resized_words(world.job, child.pods))
    return after_failure(world, record, why, child.finished_time, effects)


def _of_peers(record: AttemptStatus, why: Failure, lost: Manifest | None) -> Failure:
    """What the pods that missed the others cannot know: a node died, or some of the gang never ran."""
    if lost is not None:
        return replace(node_lost(lost), outcome=why.outcome)
    if record.state == "Pending":  # at no time did all of them run
        words = f"not all of its pods came to run: {why.message}"
        return replace(why, cls=FailureClass.DISRUPTED, reason=INCOMPLETE, message=words)
    return why


def _lost(world: World, record: AttemptStatus, child: BatchJob, lost: Manifest) -> Answer:
    """A node died with a pod on it: that Job would wait for ever, so its other pods are released with it."""
    return after_failure(world, record, node_lost(lost), world.now, (Delete(child.ref, child.uid),))


def _is_to_be_replaced(world: World, record: AttemptStatus, child: BatchJob) -> bool:
    """The spec has changed under an attempt that does not train: so a wrong image or node selector, or too
    many nodes, are repaired by a second apply.
    """
    idle = live_record(record, child).state != "Running" and (child.stopped or not child.suspended)
    return idle and not world.job.spec.suspend and is_outdated(within_share(world), child)


def _resized(
    world: World, seen: Observed, record: AttemptStatus, child: BatchJob, lost: Manifest | None
) -> Answer:
    if lost is not None:
        return _lost(world, record, child, lost)
    why = None if child.suspended else obstacle(world, seen)
    return resize(world, seen, child) if why is None else watch(world, record, child, why)


def _replaced(world: World, record: AttemptStatus, child: BatchJob) -> Answer:
    if was_stopped_to_resize(world.job, child):
        why = disrupted(resized_words(world.job, child.pods), RESIZED)
    else:
        why = disrupted("the spec was changed before its pods ran", "SpecChanged")
    config_map = Ref("v1", "ConfigMap", child.ref.namespace, child.name)
    effects = (Delete(child.ref, child.uid), Delete(config_map))
    settled = after_failure(world, record, why, world.now, effects)
    if isinstance(settled, Decision):
        return settled
    # A pass of its own for the plan, which needs what was not read for an attempt that lives. What stood still has no
    # share of a quota, and must not look as if it had.
    reason = "Stopping" if world.has_share else "Pending"
    return Decision(settled.status, not_running(reason, why.message), effects, _AT_ONCE)


def _result(ends: list[PodEnd]) -> tuple[PodEnd, TrainResult] | None:
    for end in ends:
        if end.index == 0 and end.outcome is not None and end.outcome.train is not None:
            return end, end.outcome.train
    return None


def _complete(
    world: World, record: AttemptStatus, child: BatchJob, found: tuple[PodEnd, TrainResult]
) -> Decision:
    end, result = found
    finished = rfc3339(child.finished_time or world.now)
    done = record.model_copy(
        update={"state": "Succeeded", "exit_code": 0, "finished_time": finished, "last_step": result.steps}
    )
    status = with_outcome(with_record(world.job.status, done), end.outcome, world.now)
    left = ResultStatus(
        export=sentence(result.export_directory, 1024),
        steps=result.steps,
        exported_step=result.exported_step,
        loss=decimal(result.loss),
        eval_loss=decimal(result.eval_loss),
        perplexity=decimal(result.perplexity),
    )
    progress = (status.progress or ProgressStatus()).model_copy(
        update={
            "step": result.steps,
            "total_steps": result.steps,
            "display": f"{result.steps}/{result.steps}",
            "progress_percentage": 100,
            "estimated_remaining_seconds": 0,
            "eta": "0s",
            **left.model_dump(include={"loss", "eval_loss", "perplexity"}, exclude_none=True),
            "last_updated_time": finished,
        }
    )
    status = status.model_copy(update={"result": left, "completion_time": finished, "progress": progress})
    planned = result.planned_steps or result.steps
    early = result.steps < planned
    length = f"stopped early at step {result.steps} of {planned}" if early else f"{result.steps} steps"
    exported = left.exported_step if left.exported_step is not None else result.steps
    which = f" of step {exported}" if exported != result.steps else ""
    message = f"{length}; the export{which} in {left.export} was reloaded and checked"
    conditions = {
        "Complete": Say("True", "StoppedEarly" if early else "Trained", message),
        "Failed": Say("False", "Trained", ""),
        "Running": Say("False", "Finished", message),
    }
    return Decision(status, conditions)
