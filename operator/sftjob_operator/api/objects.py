"""Words for Kubernetes objects that every layer shares: a manifest, its address, and an Event about it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

Manifest = dict[str, Any]
"""A Kubernetes object as plain JSON."""


class Ref(NamedTuple):
    """Address of one object. `api` is apiVersion, e.g. batch/v1."""

    api: str
    kind: str
    namespace: str
    name: str


def ref_of(manifest: Manifest) -> Ref:
    """The address of an object."""
    metadata = manifest["metadata"]
    return Ref(
        manifest["apiVersion"], manifest["kind"], metadata.get("namespace", "default"), metadata["name"]
    )


def condition(manifest: Manifest, type_: str) -> Manifest:
    """Its status condition of this type; empty where there is none."""
    conditions: list[Manifest] = (manifest.get("status") or {}).get("conditions") or []
    return next((item for item in conditions if item.get("type") == type_), {})


def is_true(manifest: Manifest, type_: str) -> bool:
    """Whether it has this condition with status True."""
    return condition(manifest, type_).get("status") == "True"


def is_finished(job: Manifest) -> bool:
    """Whether a Job, or an SFTJob, has come to its end."""
    return is_true(job, "Complete") or is_true(job, "Failed")


@dataclass(frozen=True)
class Event:
    """A core/v1 Event about an SFTJob."""

    type: Literal["Normal", "Warning"]
    reason: str
    message: str
