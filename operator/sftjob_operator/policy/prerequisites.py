"""What is not ours and has to be there before pods are made: the workspace's claim, and Secrets.

Missing is waiting, not failure: with GitOps things come in any order.
"""

from __future__ import annotations

from sftjob_operator.desired.claim import access_modes, claim_field, may_be_shared
from sftjob_operator.needs import claim_ref, prerequisites
from sftjob_operator.policy.decision import Say, not_running
from sftjob_operator.prepared import Prepared
from sftjob_operator.world import World


def missing(world: World, prepared: Prepared) -> dict[str, Say] | None:
    """What is waited for, by the field that names it; None = nothing."""
    fields, read = prerequisites(world.job, prepared), world.prerequisites
    absent = [ref for ref in fields if ref in read and read[ref] is None]
    if not absent:
        return None
    kind, field = absent[0].kind, fields[absent[0]]
    names = ", ".join(ref.name for ref in absent if fields[ref] == field)
    reason = "VolumeMissing" if kind == "PersistentVolumeClaim" else "SecretMissing"
    return not_running(reason, f"{field}: waiting for {kind} {names} in namespace {world.job.namespace}")


def not_shared(world: World) -> dict[str, Say] | None:
    """The pods of several nodes need one volume; None = they have it, or nobody knows."""
    nodes, ref = world.job.spec.workers.nodes, claim_ref(world.job)
    claim = world.prerequisites.get(ref) or {}
    if nodes == 1 or may_be_shared(claim):
        return None
    message = (
        f"{claim_field(world.job)}: PersistentVolumeClaim {ref.name} is {', '.join(access_modes(claim))}, which {nodes} "
        f"nodes cannot share: name a ReadWriteMany claim, or set spec.workers.nodes: 1"
    )
    return not_running("VolumeNotShared", message)
