"""Another number of nodes for a gang that runs: it saves, stops, and the next attempt goes on in the new size.

Until its pods are down a resize can be taken back: the same Job then goes on. What cannot run in the new size is
said while the gang trains on in the old one.
"""

from __future__ import annotations

from sftjob_operator.api.v1alpha1 import SFTJob
from sftjob_operator.batchjob import BatchJob
from sftjob_operator.observe import Observed
from sftjob_operator.planning.advice import no_fit_message
from sftjob_operator.planning.plan import NoFit
from sftjob_operator.policy.accept import objection
from sftjob_operator.policy.decision import STOPPING_SECONDS, Decision, not_running
from sftjob_operator.policy.prerequisites import missing, not_shared
from sftjob_operator.policy.quota import no_room_to_grow
from sftjob_operator.policy.records import live_record, with_record
from sftjob_operator.policy.start import next_plan
from sftjob_operator.policy.suspend import stop
from sftjob_operator.world import World


def is_resized(world: World, child: BatchJob) -> bool:
    """The user asks for another number of pods than this Job has, and nothing else is in the way."""
    if (
        _is_as_wanted(world.job, child)
        or objection(world.job, world.settings, has_share=world.has_share) is not None
    ):
        return False
    return child.suspended_by_us or not child.suspended


def was_stopped_to_resize(job: SFTJob, child: BatchJob) -> bool:
    """What was to stop for that reason, whether it then stood still or counted as failed."""
    return child.suspended_by_us and not _is_as_wanted(job, child)


def _is_as_wanted(job: SFTJob, child: BatchJob) -> bool:
    return job.spec.suspend or job.spec.workers.nodes == child.pods


def resized_words(job: SFTJob, pods: int) -> str:
    """For the record of the attempt of so many pods, which ends."""
    return f"spec.workers.nodes was changed from {pods} to {job.spec.workers.nodes}"


def obstacle(world: World, seen: Observed) -> str | None:
    """Why the gang should rather go on as it is: the new one could not start."""
    full = no_room_to_grow(world)
    if full is not None:
        return full
    job, facts = world.job, seen.prepared.result()
    why = missing(world, seen.prepared) or not_shared(world)
    if why is not None:
        return why["Running"].message
    if facts is None:
        return None
    chosen = next_plan(world, facts)
    return (
        no_fit_message(job.spec, facts.model, world.hardware, chosen) if isinstance(chosen, NoFit) else None
    )


def resize(world: World, seen: Observed, child: BatchJob) -> Decision:
    """Stop the gang as a suspension does; what has stopped is replaced (policy.attempt)."""
    job = world.job
    status = job.status
    if seen.record is not None:
        status = with_record(status, live_record(seen.record, child))
    message = (
        f"the pods of {child.name} save a checkpoint and stop; attempt {seen.number + 1} goes on with "
        f"{job.spec.workers.nodes} nodes instead of {child.pods}"
    )
    return Decision(status, not_running("Resizing", message), stop(child), STOPPING_SECONDS)
