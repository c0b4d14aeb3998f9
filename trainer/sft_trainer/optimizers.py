"""The optimizer that a job asks for, over the parameters it trains."""

from __future__ import annotations

import torch
from torch import nn

from sft_trainer import parameters
from sft_trainer.bf16adam import BF16Adam
from sft_trainer.config import TrainConfig
from sft_trainer.muon import Muon

_ADAM: dict[str, type[torch.optim.Adam]] = {
    "AdamW": torch.optim.AdamW,
    "Adam": torch.optim.Adam,
}  # they differ in how weights decay


def family(config: TrainConfig) -> str:
    """What a checkpoint's optimizer state is of: none continues another's."""
    if config.training.optimizer.type == "Muon":
        return "Muon"
    return "Adam" if config.training.master_weights == "FP32" else "Adam of bf16 weights"


def optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """Torch's fused Adam or AdamW, or its Muon, or ours for bf16 weights; only matrices decay, as usual."""
    training = config.training
    chosen = training.optimizer
    groups = parameters.groups(model, training.parameter_groups, chosen.weight_decay)
    rate, decay = training.learning_rate, chosen.weight_decay
    if chosen.type == "Muon":
        return Muon(
            model,
            groups,
            lr=rate,
            momentum=chosen.momentum,
            betas=chosen.betas,
            eps=chosen.eps,
            weight_decay=decay,
        )
    if training.master_weights != "FP32":
        return BF16Adam(
            groups,
            lr=rate,
            betas=chosen.betas,
            eps=chosen.eps,
            weight_decay=decay,
            decoupled=chosen.type == "AdamW",
            stochastic=training.master_weights == "BF16StochasticRounding",
            seed=training.seed,
            rank=torch.distributed.get_rank() if torch.distributed.is_initialized() else 0,
        )
    return _ADAM[chosen.type](
        groups, lr=rate, betas=chosen.betas, eps=chosen.eps, weight_decay=decay, fused=True
    )
