"""The claim of the workspace: one that is there already, or one of the job's own."""

from __future__ import annotations

from sftjob_operator.api import names
from sftjob_operator.api.objects import Manifest
from sftjob_operator.api.v1alpha1 import SFTJob
from sftjob_operator.desired.children import metadata


def claim_name(job: SFTJob) -> str:
    """Of the PersistentVolumeClaim that the pods mount."""
    return job.spec.workspace.claim_name or names.claim(job.name)


def claim_name_in(manifest: Manifest) -> str:
    """The same, of an SFTJob that was read and not parsed."""
    stated = manifest.get("spec", {}).get("workspace", {}).get("claimName")
    return str(stated or names.claim(manifest["metadata"]["name"]))


def claim_field(job: SFTJob) -> str:
    """The field that it comes from."""
    return f"spec.workspace.{'claimName' if job.spec.workspace.claim_name else 'claimTemplate'}"


def claim(job: SFTJob) -> Manifest:
    """What spec.workspace.claimTemplate asks for. With Retain it has no owner, so nothing ever collects it."""
    template = job.spec.workspace.claim_template
    assert template is not None
    about = metadata(job, names.claim(job.name), names.labels(job.name, names.ROLE_WORKSPACE))
    if job.spec.workspace.retention_policy.when_deleted == "Retain":
        del about["ownerReferences"]
    spec: Manifest = {
        "accessModes": list(template.spec.access_modes),
        "resources": {"requests": {"storage": str(template.spec.resources.requests.storage)}},
    }
    if template.spec.storage_class_name is not None:
        spec["storageClassName"] = template.spec.storage_class_name
    return {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": about, "spec": spec}


def may_be_shared(claim: Manifest) -> bool:
    """Whether several nodes can mount it; also where nobody knows."""
    modes = access_modes(claim)
    return not modes or "ReadWriteMany" in modes


def access_modes(claim: Manifest) -> list[str]:
    """What its volume can do; before there is one, what it asks for."""
    found = (claim.get("status") or {}).get("accessModes") or (claim.get("spec") or {}).get("accessModes")
    return list(found or ())


def is_of(claim: Manifest, job: SFTJob) -> bool:
    """Whether `claim` was made for this SFTJob, or kept from an earlier one of its name."""
    labels = claim["metadata"].get("labels") or {}
    owners = claim["metadata"].get("ownerReferences") or []
    made_by_us = (labels.get(names.LABEL_JOB), labels.get(names.LABEL_MANAGED_BY)) == (
        job.name,
        names.MANAGED_BY,
    )
    return made_by_us and all(owner.get("uid") == job.uid for owner in owners)
