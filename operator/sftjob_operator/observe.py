"""Where an SFTJob stands, from status and Jobs: the newest attempt, and which Job is in question."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sftjob_operator.api import names
from sftjob_operator.api.objects import Manifest, Ref
from sftjob_operator.api.status import AttemptStatus, Status
from sftjob_operator.api.v1alpha1 import SFTJob
from sftjob_operator.batchjob import BatchJob, Children, children
from sftjob_operator.desired.prepare import prepare_input, prepare_name
from sftjob_operator.goodput import WITH_PODS, kind
from sftjob_operator.prepared import Prepared, stored

OVER = ("Succeeded", "Failed")
"""States of an attempt of which nothing more comes."""


@dataclass(frozen=True)
class Observed:
    """Facts about one SFTJob, without pods."""

    children: Children
    number: int
    """Newest attempt known to status or seen as a Job; 0 = none yet."""
    record: AttemptStatus | None
    """What status says of it."""
    attempt: BatchJob | None
    """Its Job."""
    prepared: Prepared
    """Of the present input; that of the start once the job has started."""
    preparing: BatchJob | None
    """The prepare Job of the present input and try; None when there is none, or no need of one."""
    prepare_name: str
    """Its name."""

    @property
    def announced(self) -> bool:
        """Status has the newest attempt already, but its Job is still to be made (policy.start)."""
        record = self.record
        return self.attempt is None and record is not None and (record.state, record.runs) == ("Pending", 0)

    @property
    def attempt_open(self) -> bool:
        """The newest attempt has been made and is not settled yet."""
        made = self.number > 0 and not self.announced
        return made and (self.record is None or self.record.state not in OVER)

    @property
    def focus(self) -> BatchJob | None:
        """The Job in question: the open attempt's, else the prepare Job."""
        return self.attempt if self.attempt_open else self.preparing


def observe(job: SFTJob, manifests: Sequence[Manifest]) -> Observed:
    """Put status and Jobs together. Either may be the older one: the newest attempt is the larger number."""
    found = children(job, manifests)
    status = job.status
    records = {record.number: record for record in status.attempts}
    number = max([*records, *found.attempts], default=0)
    prepared = _prepared(job)
    name = prepare_name(job, prepared.input, prepared.tries + 1)
    return Observed(
        children=found,
        number=number,
        record=records.get(number),
        attempt=found.attempts.get(number),
        prepared=prepared,
        preparing=None if prepared.result() is not None else found.prepare.get(name),
        prepare_name=name,
    )


def attempt_ref(job: SFTJob, number: int) -> Ref:
    """Address of an attempt's Job."""
    return Ref("batch/v1", "Job", job.namespace, names.attempt(job.name, number))


def holds(status: Status) -> bool:
    """Whether a job with this status has its gang, or is about to have it (back)."""
    says = {condition.type: condition for condition in status.conditions}
    over = any(says[name].status == "True" for name in ("Complete", "Failed", "Suspended") if name in says)
    if over or status.start_time is None or "Running" not in says:
        return False
    newest = newest_attempt(status)
    if newest is not None and newest.state not in OVER and (newest.state, newest.runs) != ("Pending", 0):
        if newest.state != "Suspended" or says["Running"].reason == "Suspending":  # its pods still save
            return True
    return kind(status) in WITH_PODS


def newest_attempt(status: Status) -> AttemptStatus | None:
    """None before the first."""
    return max(status.attempts, key=lambda attempt: attempt.number, default=None)


def is_settled(job: SFTJob) -> bool:
    """Terminal is terminal: complete, or failed. A failure before the start is one of that very spec: a second
    apply can repair it.
    """
    true = {condition.type: condition for condition in job.status.conditions if condition.status == "True"}
    failed = true.get("Failed")
    started = job.status.start_time is not None
    return "Complete" in true or (
        failed is not None and (started or failed.observed_generation == job.generation)
    )


def hands_off(job: SFTJob) -> str | None:
    """Why nothing of this SFTJob is read, made, changed or written; None = it is ours."""
    manager = job.spec.managed_by
    if manager is not None and manager != names.MANAGER:
        return f"spec.managedBy is {manager}: that controller takes care of it, not {names.MANAGER}"
    if (job.metadata.get("annotations") or {}).get(names.ANNOTATION_PAUSED) == "true":
        return f"the annotation {names.ANNOTATION_PAUSED} is true: remove it to go on"
    return None


def _prepared(job: SFTJob) -> Prepared:
    kept = stored(job.status)
    if kept is not None and job.status.start_time is not None and kept.result() is not None:
        return kept  # the volume holds it; whatever of the spec can still change does not concern it
    current = prepare_input(job)
    return kept if kept is not None and kept.input == current else Prepared(input=current)
