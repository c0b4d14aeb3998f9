"""Planning and starting the next attempt: the only place where GPUs are asked for.

Two passes make an attempt. The first asks the API server whether it would take the Job, and writes start time,
plan and record; only the second makes anything. So whatever is lost in between, the status never lags behind
the children: what a running attempt rests on is immutable before it exists.
"""

from __future__ import annotations

from dataclasses import replace

from sft_trainer.config import FailureClass, PrepareResult
from sftjob_operator.api import names
from sftjob_operator.api.objects import Ref
from sftjob_operator.api.status import Status
from sftjob_operator.desired.job import attempt_config_map, attempt_job
from sftjob_operator.desired.service import service
from sftjob_operator.effects import Apply, Check, Create, Delete, Effect
from sftjob_operator.observe import Observed
from sftjob_operator.planning.advice import no_fit_message
from sftjob_operator.planning.plan import NoFit, Plan, plan
from sftjob_operator.policy.decision import Decision, Say, not_running, revisit
from sftjob_operator.policy.quota import asked, no_room
from sftjob_operator.policy.records import made, new_record, with_record
from sftjob_operator.policy.refusal import refused
from sftjob_operator.policy.relief import estimated, relieved
from sftjob_operator.policy.restart import RESIZED
from sftjob_operator.reports import rfc3339
from sftjob_operator.world import World

_AT_ONCE = 0.0
KEPT_JOBS = 3
"""Jobs of so many attempts stay, with their failed pods and logs."""


def plan_and_start(world: World, seen: Observed, facts: PrepareResult) -> Decision:
    """Start the attempt after the newest one, or say that nothing fits."""
    job = world.job
    chosen = next_plan(world, facts)
    if isinstance(chosen, NoFit):
        message = no_fit_message(job.spec, facts.model, world.hardware, chosen)
        conditions = {"Planned": Say("False", "DoesNotFit", message), **not_running("DoesNotFit", message)}
        # The stage that a checkpoint was written in must not be forgotten.
        forgotten = {} if may_have_saved(job.status) else {"plan": None}
        return Decision(job.status.model_copy(update=forgotten), conditions)
    status = job.status.model_copy(update={"plan": chosen.status()})
    if world.refusal is not None:
        return refused(world, status, world.refusal)
    full = no_room(world, asked(job.spec.workers))
    if full is not None:
        return replace(full, status=status)
    record = seen.record if seen.announced and seen.record else new_record(job, seen.number + 1)
    record = record.model_copy(update={"plan_hash": chosen.hash})
    message = f"attempt {record.number}: {job.spec.workers.nodes} pods are being created"
    says = not_running("ContainerCreating", message)
    size = {"nodes": job.spec.workers.nodes, "gpus": asked(job.spec.workers)}
    status = status.model_copy(update=size)
    if seen.announced:
        effects = _children(world, seen, facts, chosen)
        return Decision(with_record(status, made(record)), says, effects, revisit(0.0))
    status = status.model_copy(update={"start_time": status.start_time or rfc3339(world.now)})
    return Decision(
        with_record(status, record), says, (Check(attempt_job(job, world.settings, record.number)),), _AT_ONCE
    )


def next_plan(world: World, facts: PrepareResult) -> Plan | NoFit:
    """The strategy of the attempt after the newest one."""
    job = world.job
    keep = job.status.plan if job.status.start_time is not None else None
    lighter = relieved(job.status)
    if lighter is not None:
        keep = estimated(lighter, job.spec, facts.model, world.hardware)
    return plan(job.spec, facts.model, world.hardware, keep, resumes=may_have_saved(job.status))


def may_have_saved(status: Status) -> bool:
    """Whether there may be a checkpoint: pods that were asked to stop may have saved without a word to us."""
    asked = (RESIZED, FailureClass.INTERRUPTED)
    trained = any(attempt.last_step or attempt.reason in asked for attempt in status.attempts)
    return trained or status.last_verified_step is not None


def _children(world: World, seen: Observed, facts: PrepareResult, chosen: Plan) -> tuple[Effect, ...]:
    job, number = world.job, seen.number
    old: list[Effect] = []
    for known, child in sorted(seen.children.attempts.items()):
        if known <= number - KEPT_JOBS and not child.deleting:
            config_map = Ref("v1", "ConfigMap", job.namespace, names.attempt(job.name, known))
            old += [Delete(child.ref, child.uid), Delete(config_map)]
    return (
        Create(attempt_config_map(job, chosen, facts, number)),
        Apply(service(job)),
        Create(attempt_job(job, world.settings, number)),
        *old,
    )
