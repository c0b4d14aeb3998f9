"""The order of the policies: settled, the open attempt, and then what stands before the next one."""

from __future__ import annotations

from dataclasses import replace

from sftjob_operator.batchjob import BatchJob
from sftjob_operator.effects import Effect
from sftjob_operator.observe import Observed, holds, is_settled, observe
from sftjob_operator.pods import named, still_training
from sftjob_operator.policy import attempt, deadline, preparation
from sftjob_operator.policy.accept import objection
from sftjob_operator.policy.decision import (
    STOPPING_SECONDS,
    Answer,
    Decision,
    Transition,
    age,
    not_accepted,
    not_running,
    revisit,
)
from sftjob_operator.policy.prerequisites import missing, not_shared
from sftjob_operator.policy.quota import within_share
from sftjob_operator.policy.refusal import refused
from sftjob_operator.policy.restart import wait
from sftjob_operator.policy.start import plan_and_start
from sftjob_operator.policy.suspend import hold
from sftjob_operator.policy.volume import furnish, lost
from sftjob_operator.world import World

_ABSENT_SECONDS = 10.0  # claims and Secrets are not watched


def decide(world: World) -> Decision | None:
    """What is to be done; None when nothing ever again. Each transition is followed by a fresh look."""
    effects: tuple[Effect, ...] = ()
    if is_settled(world.job):
        return None
    world = replace(_with_status(world, {"completion_time": None}), has_share=holds(world.job.status))
    while True:
        seen = observe(world.job, world.jobs)
        answer = deadline.exceeded(world, seen) or _next(world, seen)
        effects += answer.effects
        if isinstance(answer, Decision):
            due = _sooner(answer.requeue, deadline.seconds_left(world, seen))
            return _without_refused(world, replace(answer, effects=effects, requeue=due))
        world = replace(world, job=world.job.model_copy(update={"status": answer.status}))


def _next(world: World, seen: Observed) -> Answer:
    if seen.attempt_open:
        return attempt.follow(world, seen)
    return _advance(world, seen)


def _advance(world: World, seen: Observed) -> Answer:
    """Towards the next attempt. What prepares for a spec that is no more goes first, whatever stands still."""
    answer = _ahead(world, seen)
    if isinstance(answer, Transition):
        return answer
    return replace(answer, effects=(*preparation.obsolete(seen), *answer.effects))


def _ahead(world: World, seen: Observed) -> Answer:
    job, status = world.job, world.job.status
    if job.spec.suspend:
        return hold(world, status, _living(seen))
    world = within_share(world)
    wrong = objection(world.job, world.settings, has_share=world.has_share)
    if wrong is not None:
        return not_accepted(status, wrong)
    return wait(world, seen.record) or _blocked(world, seen) or _onward(world, seen)


def _blocked(world: World, seen: Observed) -> Decision | None:
    """What must appear or go before pods are made."""
    status = world.job.status
    strangers = sorted(seen.children.strangers, key=lambda child: child.deleting)
    if strangers:
        message = f"Job {strangers[0].name} of an earlier SFTJob of this name is still being removed"
        if not strangers[0].deleting:
            message = (
                f"Job {strangers[0].name} is labelled as one of this SFTJob and belongs to another owner: "
                "delete it if it does not go by itself"
            )
        return Decision(status, not_running("NameTaken", message), requeue=revisit(age(world)))
    volume = furnish(world, seen.prepared)
    if volume is not None:
        return volume
    why = missing(world, seen.prepared) or lost(world) or not_shared(world)
    if why is None:
        return None
    return Decision(status, why, requeue=min(revisit(age(world)), _ABSENT_SECONDS))


def _onward(world: World, seen: Observed) -> Answer:
    facts = seen.prepared.result()
    if facts is None:
        return preparation.follow(world, seen)
    return _left_over(world, seen) or plan_and_start(world, seen, facts)


def _left_over(world: World, seen: Observed) -> Decision | None:
    """The first attempt would fence what the pods of an earlier SFTJob of this name are still saving."""
    pods = [] if seen.number else still_training(world.pods or (), world.now)
    if not pods:
        return None
    message = f"pods of an earlier SFTJob of this name still save and stop: {named(pods)}"
    return Decision(world.job.status, not_running("NameTaken", message), requeue=STOPPING_SECONDS)


def _living(seen: Observed) -> BatchJob | None:
    """The prepare Job, if it could still have pods."""
    child = seen.preparing
    return None if child is None or child.finished else child


def _sooner(requeue: float | None, left: float | None) -> float | None:
    """The earlier of two looks; a deadline that has passed needs none."""
    if left is None or left <= 0:
        return requeue
    return left if requeue is None else min(requeue, left)


def _with_status(world: World, update: dict[str, object]) -> World:
    status = world.job.status.model_copy(update=update)
    return replace(world, job=world.job.model_copy(update={"status": status}))


def _without_refused(world: World, decision: Decision) -> Decision:
    """A refused patch or deletion is said, too; what creates children has seen to itself."""
    refusal = world.refusal
    if refusal is None:
        return decision
    targets = [getattr(effect, "ref", None) for effect in decision.effects]
    if refusal.ref not in targets:
        return decision
    kept = tuple(effect for effect in decision.effects if getattr(effect, "ref", None) != refusal.ref)
    said = refused(world, decision.status, refusal)
    return replace(
        decision, effects=kept, conditions={**decision.conditions, **said.conditions}, requeue=60.0
    )
