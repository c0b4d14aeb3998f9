"""What may be said of a pod of ours: resources, environment, template."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from sftjob_operator.api.base import ApiModel, ObjectName, Passthrough, Quantity


class Resources(ApiModel):
    """core/v1 ResourceRequirements of the main container."""

    requests: Annotated[dict[str, Quantity], Field(max_length=16)] = Field(
        default_factory=dict, description="What is reserved."
    )
    limits: Annotated[dict[str, Quantity], Field(max_length=16)] = Field(
        default_factory=dict, description="What must not be exceeded."
    )


class EnvVar(ApiModel):
    """One variable of the main container."""

    name: Annotated[str, Field(min_length=1, max_length=253)] = Field(description="Name; SFTJOB_* are ours.")
    value: Annotated[str, Field(max_length=32768)] = Field("", description="Value, as it is.")


class PodMetadata(ApiModel):
    """Labels and annotations of the pods, beside ours."""

    labels: Annotated[dict[str, Annotated[str, Field(max_length=63)]], Field(max_length=32)] = Field(
        default_factory=dict, description="Labels; sftjob.dev/* are ours."
    )
    annotations: Annotated[dict[str, Annotated[str, Field(max_length=4096)]], Field(max_length=32)] = Field(
        default_factory=dict, description="Annotations."
    )


class ContainerOverride(ApiModel):
    """What may be added to our container."""

    name: Literal["trainer"] = Field("trainer", description="Always trainer.")
    volume_mounts: Annotated[list[Passthrough], Field(max_length=16)] = Field(
        default_factory=list, description="core/v1 VolumeMounts of the volumes below."
    )
    security_context: Passthrough | None = Field(None, description="Replaces our securityContext key by key.")


class PodSpecOverride(ApiModel):
    """The part of core/v1 PodSpec that may be set."""

    node_selector: Annotated[dict[str, Annotated[str, Field(max_length=253)]], Field(max_length=16)] = Field(
        default_factory=dict, description="Labels the nodes must have."
    )
    tolerations: Annotated[list[Passthrough], Field(max_length=16)] = Field(
        default_factory=list, description="core/v1 Tolerations."
    )
    affinity: Passthrough | None = Field(None, description="core/v1 Affinity.")
    topology_spread_constraints: Annotated[list[Passthrough], Field(max_length=8)] = Field(
        default_factory=list,
        description="core/v1 TopologySpreadConstraints. The pods of a job have the label sftjob.dev/job-name.",
    )
    priority_class_name: ObjectName | None = Field(
        None, description="PriorityClass: whom the pods may preempt, and who may preempt them."
    )
    runtime_class_name: ObjectName | None = Field(
        None,
        description="RuntimeClass, for clusters where GPUs need one (nvidia) instead of the default runtime.",
    )
    scheduler_name: Annotated[str, Field(min_length=1, max_length=253)] | None = Field(
        None, description="Scheduler; absent = the cluster's default."
    )
    volumes: Annotated[list[Passthrough], Field(max_length=16)] = Field(
        default_factory=list, description="core/v1 Volumes, beside ours."
    )
    containers: Annotated[list[ContainerOverride], Field(max_length=1)] = Field(
        default_factory=list, description="Additions to our container."
    )
    security_context: Passthrough | None = Field(
        None, description="Replaces our pod securityContext key by key, e.g. fsGroup or runAsUser."
    )
    termination_grace_period_seconds: Annotated[int, Field(ge=1, le=86400)] | None = Field(
        None, description="Time to save a checkpoint when the pods are asked to stop. Default 120."
    )


class PodTemplate(ApiModel):
    """A curated subset of core/v1 PodTemplateSpec, merged over ours."""

    metadata: PodMetadata = Field(default_factory=PodMetadata, description="Labels and annotations.")
    spec: PodSpecOverride = Field(default_factory=PodSpecOverride, description="The pod.")


class ImagePullSecret(ApiModel):
    """A Secret with registry credentials."""

    name: ObjectName = Field(description="Name of the Secret.")
