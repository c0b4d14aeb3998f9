"""The pods a Job makes: names, labels, host names and environment as the Job controller gives them."""

from __future__ import annotations

import secrets
import uuid
from datetime import datetime

from sftjob_operator.cluster.base import Manifest
from sftjob_operator.cluster.local.objects import timestamp

TRACKING = "batch.kubernetes.io/job-tracking"
INDEX = "batch.kubernetes.io/job-completion-index"
_LETTERS = "bcdfghjklmnpqrstvwxz2456789"


def pod(job: Manifest, index: int | None, now: datetime) -> Manifest:
    """A new pod of this Job; `index` is None unless the Job is Indexed."""
    metadata, template = job["metadata"], job["spec"]["template"]
    base = metadata["name"] if index is None else f"{metadata['name']}-{index}"
    uid, given = metadata["uid"], template.get("metadata", {})
    labels = {
        **given.get("labels", {}),
        "batch.kubernetes.io/controller-uid": uid,
        "batch.kubernetes.io/job-name": metadata["name"],
        "controller-uid": uid,
        "job-name": metadata["name"],
    }
    annotations = dict(given.get("annotations", {}))
    spec = dict(template["spec"])
    if index is not None:
        labels[INDEX] = annotations[INDEX] = str(index)
        spec.setdefault("hostname", base)
        variable = {"name": "JOB_COMPLETION_INDEX", "value": str(index)}
        spec["containers"] = [_with(container, variable) for container in spec["containers"]]
    owner = {"apiVersion": "batch/v1", "kind": "Job", "name": metadata["name"], "uid": uid}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "namespace": metadata["namespace"],
            "name": f"{base}-{''.join(secrets.choice(_LETTERS) for _ in range(5))}",
            "uid": str(uuid.uuid4()),
            "creationTimestamp": timestamp(now),
            "labels": labels,
            "annotations": annotations,
            "finalizers": [TRACKING],
            "ownerReferences": [{**owner, "controller": True, "blockOwnerDeletion": True}],
        },
        "spec": spec,
        "status": {"phase": "Pending"},
    }


def _with(container: Manifest, variable: dict[str, str]) -> Manifest:
    """The container with the variable first, so that later ones may refer to it."""
    others = [item for item in container.get("env", []) if item["name"] != variable["name"]]
    return {**container, "env": [variable, *others]}
