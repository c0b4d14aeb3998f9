"""What every child has: labels, its owner (so that garbage collection removes it), a deterministic name."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from sftjob_operator.api import names
from sftjob_operator.api.objects import Manifest
from sftjob_operator.api.v1alpha1 import API_VERSION, KIND, SFTJob


def metadata(
    job: SFTJob, name: str, labels: dict[str, str], annotations: dict[str, str] | None = None
) -> Manifest:
    """The metadata of a child of `job`."""
    result: Manifest = {
        "name": name,
        "namespace": job.namespace,
        "labels": labels,
        "ownerReferences": [
            {
                "apiVersion": API_VERSION,
                "kind": KIND,
                "name": job.name,
                "uid": job.uid,
                "controller": True,
                "blockOwnerDeletion": True,
            }
        ],
    }
    if annotations:
        result["annotations"] = annotations
    return result


def job_labels(job: SFTJob, role: str, number: int | None = None) -> dict[str, str]:
    """Labels of a batch/v1 Job: ours, and the queue's which the SFTJob carries."""
    return {**queue_labels(job), **names.labels(job.name, role, number)}


def queue_labels(job: SFTJob) -> dict[str, str]:
    """The queue's own labels."""
    labels = job.metadata.get("labels") or {}
    return {key: str(value) for key, value in labels.items() if key.startswith(names.QUEUE_PREFIX)}


def config_map(job: SFTJob, name: str, labels: dict[str, str], files: dict[str, str]) -> Manifest:
    """An immutable ConfigMap: what a running pod reads can no longer change under it."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": metadata(job, name, labels),
        "immutable": True,
        "data": files,
    }


def digest(value: Any, length: int = 8) -> str:
    """The first `length` hex characters of the SHA-256 of a JSON value; equal values give equal digests."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode("ascii")).hexdigest()[:length]
