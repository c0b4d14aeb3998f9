"""What has to be read for this pass, so that nothing is read when nothing depends on it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from sftjob_operator.api import names
from sftjob_operator.api.objects import Manifest, Ref
from sftjob_operator.api.v1alpha1 import SFTJob
from sftjob_operator.batchjob import BatchJob
from sftjob_operator.desired.claim import claim_field, claim_name
from sftjob_operator.observe import Observed, attempt_ref, hands_off, is_settled, observe
from sftjob_operator.prepared import Prepared

QUIET_SECONDS = 4.0
"""Pods that have just been created are not asked why they are not ready."""


@dataclass(frozen=True)
class Needs:
    """Reads the shell makes before `step`. Everything defaults to: nothing."""

    jobs: tuple[Ref, ...] = ()
    """Jobs that status knows and the view lacks: `get` them from the API server and add those found to
    World.jobs (a stale view and a deleted Job look alike)."""
    prerequisites: tuple[Ref, ...] = ()
    """PersistentVolumeClaim and Secrets: `get` each into World.prerequisites."""
    sftjobs: bool = False
    """Every SFTJob of the namespace into World.sftjobs (a preparation is due)."""
    pods: bool = False
    """List pods with `pod_labels` into World.pods."""
    progress: bool = False
    """Fetch /progress of the pod with `pod_labels` and completion index 0 into World.progress."""
    pod_labels: Mapping[str, str] = field(default_factory=dict)
    hardware: bool = False
    """World.hardware is going to be used (a plan is due)."""


def needs(job: SFTJob, jobs: Sequence[Manifest], now: datetime) -> Needs:
    """Which reads the next `step` for this SFTJob and these Jobs (as the view has them) depends on."""
    if job.metadata.get("deletionTimestamp") or is_settled(job) or hands_off(job) is not None:
        return Needs()
    seen = observe(job, jobs)
    unseen = (attempt_ref(job, seen.number),) if seen.attempt is None and _is_awaited(seen) else ()
    if seen.attempt_open and seen.attempt is None:
        return Needs(jobs=unseen)
    focus = seen.focus
    labels = {} if focus is None else _pod_labels(job, seen)
    if focus is not None and not _is_over(focus):
        watched = not focus.suspended and not focus.deleting
        unready = watched and not focus.all_ready and focus.age(now) >= QUIET_SECONDS
        asked = focus.suspended and (job.spec.suspend or focus.suspended_by_us)
        stopping = asked and not focus.stopped  # on a lost node: for ever
        resized = watched and seen.attempt_open and focus.pods != job.spec.workers.nodes
        return Needs(
            prerequisites=tuple(prerequisites(job, seen.prepared)) if resized else (),
            pods=unready or stopping or focus.deleting,
            progress=watched and seen.attempt_open and focus.ready > 0,
            pod_labels=labels,
            hardware=resized,
        )
    ahead = not job.spec.suspend
    # Before the first attempt, which would take the volume from pods of an earlier SFTJob of this name.
    first = ahead and seen.number == 0 and (focus is not None or seen.prepared.result() is not None)
    return Needs(
        jobs=unseen,
        prerequisites=tuple(prerequisites(job, seen.prepared)) if ahead else (),
        sftjobs=ahead and focus is None and seen.prepared.result() is None,
        pods=focus is not None or first,
        pod_labels={names.LABEL_JOB: job.name} if first else labels,
        hardware=ahead,
    )


def prerequisites(job: SFTJob, prepared: Prepared) -> dict[Ref, str]:
    """What must exist before a pod is made, and the field of the spec that names it.

    The Secrets of model and data are for preparation alone: a restart does without them.
    """
    spec, namespace = job.spec, job.namespace
    fields = {claim_ref(job): claim_field(job)}
    for secret in spec.workers.image_pull_secrets:
        fields[Ref("v1", "Secret", namespace, secret.name)] = "spec.workers.imagePullSecrets"
    if prepared.result() is not None:
        return fields
    if spec.model.secret_ref is not None:
        fields[Ref("v1", "Secret", namespace, spec.model.secret_ref.name)] = "spec.model.secretRef"
    for field_name, source in spec.data_sources.items():
        if source.secret_ref is not None:
            fields.setdefault(
                Ref("v1", "Secret", namespace, source.secret_ref.name), f"{field_name}.secretRef"
            )
    return fields


def claim_ref(job: SFTJob) -> Ref:
    """Address of the workspace's claim."""
    return Ref("v1", "PersistentVolumeClaim", job.namespace, claim_name(job))


def _is_awaited(seen: Observed) -> bool:
    """Status knows of a Job that may have been made."""
    return seen.attempt_open or seen.announced


def _is_over(focus: BatchJob) -> bool:
    return focus.finished or focus.failing is not None


def _pod_labels(job: SFTJob, seen: Observed) -> dict[str, str]:
    if seen.attempt_open:
        return names.labels(job.name, names.ROLE_TRAIN, seen.number)
    return names.labels(job.name, names.ROLE_PREPARE)
