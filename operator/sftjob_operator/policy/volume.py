"""The job's own claim (spec.workspace.claimTemplate): made once, before anything lies on it."""

from __future__ import annotations

from sftjob_operator.desired.claim import claim, claim_field, is_of
from sftjob_operator.effects import Create
from sftjob_operator.needs import claim_ref
from sftjob_operator.policy.decision import Decision, Say, age, not_running, revisit
from sftjob_operator.policy.refusal import refused
from sftjob_operator.prepared import Prepared
from sftjob_operator.world import NAME_TAKEN, World

_AT_ONCE = 0.0


def furnish(world: World, prepared: Prepared) -> Decision | None:
    """Make the claim, or say whose it is; None = it is ours, or not ours to make.

    A claim that is gone after preparation is not made again: what lay on it would be missed only later.
    """
    job, ref = world.job, claim_ref(world.job)
    if job.spec.workspace.claim_template is None or ref not in world.prerequisites:
        return None
    there = world.prerequisites[ref]
    if there is None:
        if prepared.result() is not None or job.status.start_time is not None:
            return None
        if world.refusal is not None and world.refusal.ref == ref:
            return refused(world, job.status, world.refusal)
        words = f"PersistentVolumeClaim {ref.name} is being created"
        return Decision(job.status, not_running("Preparing", words), (Create(claim(job)),), _AT_ONCE)
    if not there or is_of(there, job):  # {}: it may not be read
        return None
    message = f"{claim_field(job)}: PersistentVolumeClaim {ref.name} is there already and was not made for this SFTJob"
    if there["metadata"].get("deletionTimestamp") or there["metadata"].get("ownerReferences"):
        message += ": it is used once it is gone, or delete it"
    else:
        message += ": name it in spec.workspace.claimName to use it, delete it, or create this job under another name"
    return Decision(job.status, not_running(NAME_TAKEN, message), requeue=revisit(age(world)))


def lost(world: World) -> dict[str, Say] | None:
    """The volume under a claim is gone for good; None = it is not, or nobody knows."""
    ref = claim_ref(world.job)
    found = world.prerequisites.get(ref) or {}
    if (found.get("status") or {}).get("phase") != "Lost":
        return None
    volume = (found.get("spec") or {}).get("volumeName") or "its volume"
    message = f"{claim_field(world.job)}: PersistentVolumeClaim {ref.name} has lost {volume}, and with it what lay there"
    return not_running(
        "VolumeLost", f"{message}: restore the volume, or delete claim and job and create them anew"
    )
