"""Planning and starting the next attempt: the only place where GPUs are asked for."""

from __future__ import annotations

from sft_trainer.config import PrepareResult
from sftjob_operator.api import names
from sftjob_operator.api.objects import Ref
from sftjob_operator.desired.job import attempt_config_map, attempt_job
from sftjob_operator.desired.service import service
from sftjob_operator.effects import Apply, Create, Delete, Effect
from sftjob_operator.observe import Observed
from sftjob_operator.planning.advice import no_fit_message
from sftjob_operator.planning.plan import NoFit, Plan, plan
from sftjob_operator.policy.decision import Decision, Say, not_running, revisit
from sftjob_operator.policy.records import new_record, with_record
from sftjob_operator.policy.refusal import refused
from sftjob_operator.reports import rfc3339
from sftjob_operator.world import World

KEPT_JOBS = 3
"""Jobs of so many attempts stay, with their failed pods and logs."""


def plan_and_start(world: World, seen: Observed, facts: PrepareResult) -> Decision:
    """Start the attempt after the newest one, or say that nothing fits."""
    job = world.job
    keep = job.status.plan if job.status.start_time is not None else None
    chosen = plan(job.spec, facts.model, world.hardware, keep)
    if isinstance(chosen, NoFit):
        message = no_fit_message(job.spec, facts.model, world.hardware, chosen)
        conditions = {"Planned": Say("False", "DoesNotFit", message), **not_running("DoesNotFit", message)}
        return Decision(job.status.model_copy(update={"plan": None}), conditions)
    planned = job.status.model_copy(update={"plan": chosen.status()})
    if world.refusal is not None:
        return refused(planned, world.refusal)
    number = seen.number + 1
    status = with_record(planned, new_record(job, number)).model_copy(
        update={
            "start_time": job.status.start_time or rfc3339(world.now),
            "nodes": job.spec.workers.nodes,
        }
    )
    message = f"attempt {number}: {job.spec.workers.nodes} pods are being created"
    return Decision(
        status,
        not_running("ContainerCreating", message),
        _effects(world, seen, facts, chosen, number),
        revisit(0.0),
    )


def _effects(
    world: World, seen: Observed, facts: PrepareResult, chosen: Plan, number: int
) -> tuple[Effect, ...]:
    job = world.job
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
