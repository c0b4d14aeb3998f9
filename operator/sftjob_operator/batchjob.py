"""A batch/v1 Job as we read it: the few facts that decisions rest on, and whose child it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sftjob_operator.api import names
from sftjob_operator.api.objects import Manifest, Ref
from sftjob_operator.api.v1alpha1 import SFTJob
from sftjob_operator.reports import parse_time


@dataclass(frozen=True)
class BatchJob:
    """One Job."""

    ref: Ref
    uid: str
    labels: dict[str, str]
    annotations: dict[str, str]
    pods: int
    """spec.parallelism."""
    active: int
    ready: int
    succeeded: int
    """With those that the controller has seen end and not yet counted."""
    terminating: int
    suspended: bool
    """spec.suspend, by us or by a queue."""
    suspended_by_us: bool
    deleting: bool
    complete: bool
    failed: str | None
    """Message of the Failed condition (every pod is down)."""
    failing: str | None
    """Message of the FailureTarget condition (pods may still be stopping)."""
    since: datetime | None
    """When it last started (again): status.startTime, which a resume resets; else its creation."""
    finished_time: datetime | None

    @property
    def name(self) -> str:
        """metadata.name."""
        return self.ref.name

    @property
    def queue(self) -> str | None:
        """Kueue's queue, which decides when it runs."""
        return self.labels.get(names.LABEL_QUEUE)

    @property
    def finished(self) -> bool:
        """Nothing of it runs any more, or ever will."""
        return self.complete or self.failed is not None

    @property
    def all_ready(self) -> bool:
        """Every pod runs, or has done its part already."""
        return self.ready + self.succeeded >= self.pods

    @property
    def stopped(self) -> bool:
        """No pod of it is left running."""
        return self.active == 0 and self.terminating == 0

    def age(self, now: datetime) -> float:
        """Seconds since it last started."""
        return max((now - self.since).total_seconds(), 0.0) if self.since else 0.0


@dataclass(frozen=True)
class Children:
    """The Jobs of one SFTJob, told apart."""

    prepare: dict[str, BatchJob]
    """By name."""
    attempts: dict[int, BatchJob]
    """By number."""
    strangers: tuple[BatchJob, ...]
    """Those labelled with our name that belong to another owner, or to none and are going."""


def read_job(manifest: Manifest) -> BatchJob:
    """Read one Job; absent fields are what Kubernetes means by their absence."""
    metadata, spec, status = manifest["metadata"], manifest.get("spec") or {}, manifest.get("status") or {}
    annotations = metadata.get("annotations") or {}
    true = {item["type"]: item for item in status.get("conditions") or () if item.get("status") == "True"}
    uncounted = status.get("uncountedTerminatedPods") or {}
    last = true.get("Failed") or true.get("Complete") or {}
    suspended = bool(spec.get("suspend"))
    started = None if suspended else parse_time(status.get("startTime"))
    return BatchJob(
        ref=Ref("batch/v1", "Job", metadata.get("namespace", "default"), metadata["name"]),
        uid=str(metadata.get("uid", "")),
        labels=metadata.get("labels") or {},
        annotations=annotations,
        pods=_count(spec, "parallelism", 1),
        active=_count(status, "active"),
        ready=_count(status, "ready"),
        succeeded=_count(status, "succeeded") + len(uncounted.get("succeeded") or ()),
        terminating=_count(status, "terminating"),
        suspended=suspended,
        suspended_by_us=suspended and annotations.get(names.ANNOTATION_SUSPENDED_BY) is not None,
        deleting=metadata.get("deletionTimestamp") is not None,
        complete="Complete" in true,
        failed=str(true["Failed"].get("message", "")) if "Failed" in true else None,
        failing=str(true["FailureTarget"].get("message", "")) if "FailureTarget" in true else None,
        since=started or parse_time(metadata.get("creationTimestamp")),
        finished_time=parse_time(status.get("completionTime")) or parse_time(last.get("lastTransitionTime")),
    )


def children(job: SFTJob, manifests: Sequence[Manifest]) -> Children:
    """Sort the Jobs labelled with this SFTJob's name; one that nobody owns is in nobody's way but its name's."""
    prepare: dict[str, BatchJob] = {}
    attempts: dict[int, BatchJob] = {}
    strangers: list[BatchJob] = []
    for manifest in manifests:
        child = read_job(manifest)
        owners = [owner.get("uid") for owner in manifest["metadata"].get("ownerReferences") or ()]
        if job.uid not in owners:
            if owners or child.deleting:
                strangers.append(child)
            continue
        number = child.labels.get(names.LABEL_ATTEMPT, "")
        if child.labels.get(names.LABEL_ROLE) == names.ROLE_PREPARE:
            prepare[child.name] = child
        elif child.labels.get(names.LABEL_ROLE) == names.ROLE_TRAIN and number.isdigit():
            attempts[int(number)] = child
    return Children(prepare, attempts, tuple(strangers))


def _count(part: Manifest, key: str, otherwise: int = 0) -> int:
    value = part.get(key)
    return otherwise if value is None else int(value)
