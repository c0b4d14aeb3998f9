"""spec.workers and spec.prepare: the pods that train, and the one before them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from sftjob_operator.api.base import ApiModel, Quantity, rules
from sftjob_operator.api.v1alpha1.pods import EnvVar, ImagePullSecret, PodTemplate, Resources


class Workers(ApiModel):
    """The gang: one pod per node, one rank per GPU."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            (
                "!has(self.processesPerNode) || (has(self.gpusPerNode) && self.gpusPerNode == 0)",
                "spec.workers.processesPerNode is only for CPU training: set spec.workers.gpusPerNode: 0",
            )
        )
    )
    nodes: Annotated[int, Field(ge=1, le=1024)] = Field(
        1,
        description="Pods, one per node. Default 1. Changed while the job runs (kubectl scale): it saves a "
        "checkpoint and goes on from it in the new size.",
    )
    gpus_per_node: Annotated[int, Field(ge=0, le=64)] = Field(
        1, description="GPUs, and so ranks, per pod; 0 = train on the CPU. Default 1."
    )
    gpu_resource_name: Annotated[str, Field(min_length=1, max_length=253)] = Field(
        "nvidia.com/gpu", description="Resource that is requested gpusPerNode times. Default nvidia.com/gpu."
    )
    processes_per_node: Annotated[int, Field(ge=1, le=64)] | None = Field(
        None, description="Ranks per pod of CPU training. Default 1."
    )
    image: Annotated[str, Field(min_length=1, max_length=1024)] | None = Field(
        None, description="Trainer image; absent = the one installed with the operator."
    )
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] | None = Field(
        None, description="As in core/v1; absent = Kubernetes' choice."
    )
    image_pull_secrets: Annotated[list[ImagePullSecret], Field(max_length=8)] = Field(
        default_factory=list, description="Registry credentials, for prepare too."
    )
    resources: Resources = Field(default_factory=Resources, description="Beside the GPUs.")
    shared_memory: Quantity | None = Field(
        None, description="Size of /dev/shm. Default 1Gi per rank; it counts as memory of the pod."
    )
    env: Annotated[list[EnvVar], Field(max_length=64)] = Field(
        default_factory=list, description="Environment of launcher and ranks, for example NCCL_DEBUG."
    )
    pod_template: PodTemplate = Field(default_factory=PodTemplate, description="Merged over our pods.")


class Prepare(ApiModel):
    """The pod that fetches the model and tokenises the data before any GPU is taken."""

    resources: Resources = Field(default_factory=Resources, description="CPU and memory.")
    env: Annotated[list[EnvVar], Field(max_length=64)] = Field(
        default_factory=list, description="Environment, for example a proxy."
    )
    pod_template: PodTemplate = Field(default_factory=PodTemplate, description="Merged over our pod.")
