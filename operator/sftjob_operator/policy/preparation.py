"""Preparation before any GPU is taken: made, watched, read once, tried again, or failed for good.

Until the job has started a changed spec is another input and so another preparation: that is how a second
apply repairs a job whose data was wrong.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

from sftjob_operator.api.names import ANNOTATION_INPUT
from sftjob_operator.api.objects import Ref
from sftjob_operator.batchjob import BatchJob
from sftjob_operator.desired.claim import claim_name, may_be_shared
from sftjob_operator.desired.collect import after_preparation
from sftjob_operator.desired.job import attempt_job
from sftjob_operator.desired.prepare import prepare_children
from sftjob_operator.effects import Check, Create, Delete, Effect
from sftjob_operator.failure import Failure, disrupted, failure, node_lost, without_result
from sftjob_operator.needs import claim_ref
from sftjob_operator.observe import Observed
from sftjob_operator.pods import lost_pod, of_job, pod_end
from sftjob_operator.policy.decision import (
    STOPPING_SECONDS,
    Answer,
    Decision,
    Say,
    Transition,
    not_running,
    revisit,
)
from sftjob_operator.policy.refusal import refused
from sftjob_operator.policy.restart import MOST_DISRUPTIONS, failed, wait_seconds
from sftjob_operator.policy.running import not_ready
from sftjob_operator.policy.suspend import paused
from sftjob_operator.prepared import FailedTry, Prepared, data_status, model_status
from sftjob_operator.reports import parse_time, rfc3339
from sftjob_operator.world import World

_AGAIN_SECONDS = 1.0
_WAY_OUT = (
    "apply the job again with a corrected spec; if only a file in the workspace was wrong, "
    "repair it, delete the job and apply it again"
)


def follow(world: World, seen: Observed) -> Answer:
    """The next step towards the facts, which are not there yet."""
    status, kept, child = world.job.status, seen.prepared, seen.preparing
    if child is None:
        if kept.failure is not None:
            return _after_failure(world, seen, kept, kept.failure)
        return _create(world, seen)
    lost = None if world.pods is None else lost_pod(of_job(world.pods, child), world.now)
    if child.deleting and lost is None:
        return Decision(status, _preparing(f"Job {child.name} is being deleted"), requeue=STOPPING_SECONDS)
    if child.finished:
        return _read(world, seen, child)
    if child.suspended and not child.deleting:
        return paused(status, child)
    if lost is not None:  # that Job would wait for ever
        return replace(_failed_try(world, seen, node_lost(lost), child), effects=_removal(child))
    if child.all_ready:
        words = f"Job {child.name} fetches the model and tokenises the data"
        return Decision(status, _preparing(words), requeue=60.0)
    why = not_ready(world, child)
    reason = "Preparing" if why.reason in ("ContainerCreating", "Finishing") else why.reason
    conditions = {**_preparing(""), **not_running(reason, f"preparation: {why.message}")}
    return Decision(status, conditions, requeue=revisit(child.age(world.now)))


def obsolete(seen: Observed) -> tuple[Effect, ...]:
    """Removal of the prepare Jobs of another input: the spec has changed under them."""
    found: list[Effect] = []
    for child in sorted(seen.children.prepare.values(), key=lambda each: each.name):
        if child.annotations.get(ANNOTATION_INPUT) != seen.prepared.input and not child.deleting:
            found += _removal(child)
    return tuple(found)


def _create(world: World, seen: Observed) -> Decision:
    job = world.job
    if world.refusal is not None:
        return refused(world, job.status, world.refusal)
    collect = after_preparation(world.settings, claim_name(job), world.sftjobs, world.now)
    shared = may_be_shared(world.prerequisites.get(claim_ref(job)) or {})
    manifests = prepare_children(job, world.settings, seen.prepared.tries + 1, collect, shared=shared)
    # A training pod that the API server would refuse is better known now than when the data is ready.
    check = Check(attempt_job(job, world.settings, seen.number + 1))
    effects: tuple[Effect, ...] = (check, *(Create(manifest) for manifest in manifests))
    message = f"Job {seen.prepare_name} is being created"
    return Decision(job.status, _preparing(message), effects, revisit(0.0))


def _read(world: World, seen: Observed, child: BatchJob) -> Answer:
    """Take over what an ended preparation says."""
    status = world.job.status
    if world.pods is None:
        return Decision(status, _preparing(f"Job {child.name} has ended"), requeue=_AGAIN_SECONDS)
    ends = [end for end in map(pod_end, of_job(world.pods, child)) if end is not None]
    if not child.complete:
        return _failed_try(world, seen, failure(child, ends, stopping=child.suspended), child)
    for end in ends:
        facts = None if end.outcome is None else end.outcome.prepare
        if facts is not None:
            kept = Prepared(input=seen.prepared.input, facts=facts.model_dump(mode="json", by_alias=True))
            return Transition(
                status.model_copy(
                    update={
                        "prepared": kept.json_value(),
                        "model": model_status(facts),
                        "data": data_status(facts),
                    }
                )
            )
    # What it did is in the cache: doing it again is quick.
    if not ends:
        return _failed_try(world, seen, disrupted("its pod is gone, and its result with it"), child)
    return _failed_try(world, seen, without_result("preparation left no readable result"), child)


def _failed_try(world: World, seen: Observed, why: Failure, child: BatchJob) -> Transition:
    kept = seen.prepared.failed(why, rfc3339(child.finished_time or world.now))
    return Transition(world.job.status.model_copy(update={"prepared": kept.json_value()}))


def _after_failure(world: World, seen: Observed, kept: Prepared, last: FailedTry) -> Decision:
    job, policy = world.job, world.job.spec.failure_policy
    at = parse_time(last.finished_time) or world.now
    over = None
    if kept.charged > policy.max_restarts:
        over = f"spec.failurePolicy.maxRestarts ({policy.max_restarts}) is used up: "
    elif kept.tries - kept.charged > MOST_DISRUPTIONS:
        over = f"the cluster has taken {MOST_DISRUPTIONS} preparations: "
    if last.fatal or over is not None:
        message = f"{over or ''}{last.message}"
        verdict = failed(job.status, at, last.reason, f"{message}; {_WAY_OUT}" if last.fatal else message)
        return Decision(
            verdict.status, {**verdict.conditions, "Prepared": Say("False", last.reason, message)}
        )
    due = at + timedelta(seconds=wait_seconds(policy, kept.charged))
    if world.now >= due:
        return _create(world, seen)
    message = f"preparation failed ({last.reason}): {last.message}; the next try starts at {rfc3339(due)}"
    # What has started and is prepared again has no gang that it is about to have back.
    reason = "Restarting" if job.status.start_time is None else "Preparing"
    conditions = {**_preparing(message), **not_running(reason, message)}
    return Decision(job.status, conditions, requeue=max((due - world.now).total_seconds(), 0.1))


def _preparing(message: str) -> dict[str, Say]:
    return {"Prepared": Say("Unknown", "Preparing", message), **not_running("Preparing", message)}


def _removal(child: BatchJob) -> tuple[Effect, ...]:
    """The Job and its ConfigMap, which has the same name."""
    return Delete(child.ref, child.uid), Delete(Ref("v1", "ConfigMap", child.ref.namespace, child.name))
