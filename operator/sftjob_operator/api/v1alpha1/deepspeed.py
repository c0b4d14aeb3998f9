"""spec.deepspeed: the parallel strategy."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from sftjob_operator.api.base import ApiModel, RawConfig, rules


class DeepSpeed(ApiModel):
    """The parallel strategy. What is absent is chosen by the planner; the choice is in status.plan."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            (
                "!has(self.offloadOptimizer) || self.offloadOptimizer == 'None' || !has(self.zeroStage) || "
                "self.zeroStage > 0",
                "spec.deepspeed.offloadOptimizer needs spec.deepspeed.zeroStage: 1, 2 or 3",
            ),
            (
                "!has(self.offloadParameters) || self.offloadParameters == 'None' || !has(self.zeroStage) || "
                "self.zeroStage == 3",
                "spec.deepspeed.offloadParameters needs spec.deepspeed.zeroStage: 3",
            ),
        )
    )
    zero_stage: Annotated[int, Field(ge=0, le=3)] | None = Field(
        None, description="What is partitioned: 1 optimizer state, 2 and gradients, 3 and parameters."
    )
    offload_optimizer: Literal["None", "CPU"] | None = Field(
        None,
        description="CPU keeps optimizer state and gradients in the pod's memory and updates weights there. Absent = "
        "only where nothing else fits and spec.workers.resources says that there is memory.",
    )
    offload_parameters: Literal["None", "CPU"] | None = Field(
        None,
        description="CPU keeps the weights in the pod's memory as well, and fetches each layer when it is needed.",
    )
    micro_batch_size: Annotated[int, Field(ge=1, le=4096)] | None = Field(
        None,
        description="Sequences per GPU and forward pass (with sequenceParallelSize or tensorParallelSize, per group "
        "of GPUs that share them).",
    )
    sequence_parallel_size: Annotated[int, Field(ge=1, le=1024)] = Field(
        1,
        description="So many consecutive GPUs share sequences, each a part of their tokens, and exchange heads for tokens "
        "around attention (Ulysses): for long contexts. It divides the number of GPUs and of attention heads. Default 1.",
    )
    tensor_parallel_size: Annotated[int, Field(ge=1, le=1024)] = Field(
        1,
        description="So many consecutive GPUs have every layer between them (AutoTP): a share of the heads, of the MLP and "
        "of the vocabulary each. It divides the GPUs of a node, and the attention heads. Default 1.",
    )
    activation_checkpointing: Literal["None", "Selective", "Full"] | None = Field(
        None,
        description="Full recomputes activations in the backward pass: least memory, a third more time. Selective keeps "
        "the results of linear layers and attention: in between.",
    )
    config: RawConfig | None = Field(
        None,
        description="Raw DeepSpeed configuration in DeepSpeed's own names, merged over ours; a disagreement "
        "with a typed field is refused (DeepSpeedConfigConflict).",
    )
