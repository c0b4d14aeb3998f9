"""Names and labels of everything we create. Deterministic: the same job and attempt always give the same."""

from __future__ import annotations

LABEL_JOB = "sftjob.dev/job-name"
LABEL_ATTEMPT = "sftjob.dev/attempt"
LABEL_ROLE = "sftjob.dev/role"
LABEL_MANAGED_BY = "app.kubernetes.io/managed-by"
MANAGED_BY = "sftjob-operator"
MANAGER = "sftjob.dev/operator"
"""Of spec.managedBy: this operator."""
FIELD_MANAGER = "sftjob-operator"
ANNOTATION_INPUT = "sftjob.dev/input"
"""On a prepare Job: digest of what it prepares."""
ANNOTATION_TRY = "sftjob.dev/try"
"""On a prepare Job: counts from 1."""
ANNOTATION_SPEC = "sftjob.dev/spec"
"""On an attempt's Job: digest of what it is made of and the user may change meanwhile."""
ANNOTATION_PAUSED = "sftjob.dev/paused"
"""On an SFTJob, by people: "true" = the operator leaves it and its children as they are."""
ANNOTATION_SUSPENDED_BY = "sftjob.dev/suspended-by"
"""On a Job that we have suspended: nobody else's suspension is ever lifted."""
QUEUE_PREFIX = "kueue.x-k8s.io/"
"""Labels of the SFTJob that are copied to its Jobs."""
LABEL_QUEUE = f"{QUEUE_PREFIX}queue-name"
ROLE_PREPARE = "prepare"
ROLE_TRAIN = "train"
ROLE_WORKSPACE = "workspace"
CONTAINER = "trainer"


def prepare(job: str, digest: str) -> str:
    """The prepare Job, and its ConfigMap, for one input (`digest`: 8 hex characters)."""
    return f"{job}-prepare-{digest}"


def claim(job: str) -> str:
    """The PersistentVolumeClaim of spec.workspace.claimTemplate."""
    return f"{job}-workspace"


def attempt(job: str, number: int) -> str:
    """The training Job of an attempt, and its ConfigMap."""
    return f"{job}-{number}"


def service(job: str) -> str:
    """The headless Service that gives the training pods their DNS names."""
    return job


def host(job: str, number: int, index: int) -> str:
    """DNS name of a training pod inside its namespace, as in the hostfile."""
    return f"{attempt(job, number)}-{index}.{service(job)}"


def labels(job: str, role: str, number: int | None = None) -> dict[str, str]:
    """Labels of a child; our watches select on them."""
    base = {LABEL_JOB: job, LABEL_ROLE: role, LABEL_MANAGED_BY: MANAGED_BY}
    return base if number is None else {**base, LABEL_ATTEMPT: str(number)}
