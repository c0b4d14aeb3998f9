"""spec.workspace: the volume of all pods."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from sftjob_operator.api.base import ApiModel, ObjectName, Quantity, RelativePath, exactly_one_of, rules

AccessMode = Literal["ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod"]


class ClaimRequests(ApiModel):
    """What the volume must have."""

    storage: Quantity = Field(description="Its size, such as 500Gi.")


class ClaimResources(ApiModel):
    """As in core/v1."""

    requests: ClaimRequests = Field(description="What the volume must have.")


class ClaimSpec(ApiModel):
    """A curated subset of core/v1 PersistentVolumeClaimSpec: a file system, never a block device."""

    access_modes: Annotated[list[AccessMode], Field(min_length=1, max_length=3)] = Field(
        default_factory=lambda: list[AccessMode](["ReadWriteMany"]),
        description="Default [ReadWriteMany], which more than one node needs.",
    )
    resources: ClaimResources = Field(description="Its size.")
    storage_class_name: Annotated[str, Field(max_length=253)] | None = Field(
        None, description="Absent = the cluster's default class."
    )


class ClaimTemplate(ApiModel):
    """A PersistentVolumeClaim to be made."""

    spec: ClaimSpec = Field(description="The claim.")


class RetentionPolicy(ApiModel):
    """What becomes of the claim."""

    when_deleted: Literal["Retain", "Delete"] = Field(
        "Retain",
        description="With the SFTJob, and never before: Retain keeps the claim, and a job of the same name finds it again; "
        "Delete removes it, the volume and all that lies on it. Default Retain.",
    )


class Workspace(ApiModel):
    """The shared volume with models, datasets, caches, checkpoints and exports: exactly one of the two claims."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            exactly_one_of("spec.workspace", "claimName", "claimTemplate"),
            (
                "!has(self.retentionPolicy) || has(self.claimTemplate)",
                "spec.workspace.retentionPolicy is for a claim of the job's own: set claimTemplate, or remove it",
            ),
        )
    )
    claim_name: ObjectName | None = Field(
        None,
        description="PersistentVolumeClaim, ReadWriteMany unless nodes is 1. "
        "While it is missing the job waits.",
    )
    claim_template: ClaimTemplate | None = Field(
        None, description="A claim of the job's own, <name>-workspace, made before preparation."
    )
    retention_policy: RetentionPolicy = Field(
        default_factory=RetentionPolicy, description="Of the claim made from claimTemplate."
    )
    sub_path: RelativePath | None = Field(None, description="Folder of the volume to use as workspace.")
