"""What the memory of one rank depends on, beside the model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sft_trainer.config import Attention, MasterWeights, Offload, Precision, Recompute


@dataclass(frozen=True)
class Shape:
    """What the need depends on, beside the model."""

    world_size: int
    zero_stage: int
    micro_batch_size: int
    max_length: int
    checkpointing: Recompute
    precision: Precision
    accelerator: Literal["gpu", "cpu"]
    lora_rank: int | None
    """None = all weights are trained."""
    dora: bool = False
    lora_dropout: bool = False
    offload_optimizer: Offload = "None"
    offload_parameters: Offload = "None"
    master_weights: MasterWeights = "FP32"
    muon: bool = False
    secondary_size: int = 1
    attention: Attention | None = None
    """None = the pods choose."""
    quantised: bool = False
    """The frozen linear layers in four bits (QLoRA)."""
    sequence_ranks: int = 1
    tensor_ranks: int = 1

    @property
    def tokens(self) -> int:
        """Positions of a forward pass of one rank."""
        return self.micro_batch_size * -(-self.max_length // self.sequence_ranks)
