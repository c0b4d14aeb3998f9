"""Activation checkpointing: what the forward pass keeps for the backward pass, and what that computes again."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts

from sft_trainer import upcast
from sft_trainer.config import Recompute

_ATEN = torch.ops.aten
# What costs most to compute again. Not bmm: in attention without a fused kernel it makes the scores, the largest
# tensor there is and the first that checkpointing is to be rid of.
_KEPT = [
    _ATEN.mm.default,
    _ATEN.addmm.default,
    _ATEN._scaled_dot_product_flash_attention.default,
    _ATEN._scaled_dot_product_efficient_attention.default,
    _ATEN._scaled_dot_product_cudnn_attention.default,
    _ATEN._scaled_dot_product_flash_attention_for_cpu.default,
]
# Not torch's own. FlashAttention's (flashkernels.py) exist once their module is imported.
_KEPT_NAMES = {"torch_attn::_varlen_attn", "flash_attn::_flash_attn_varlen_forward", upcast.LINEAR}


def enable(model: Any, recompute: Recompute) -> None:
    """Let every layer of `model` keep its input only (Full), or the results of its matrix products too (Selective).

    Selective is that of https://pytorch.org/blog/activation-checkpointing-techniques/: linear layers and fused
    attention are not computed again, norms, activations and what else is cheap is.
    """
    if recompute == "None":
        return
    options: dict[str, Any] = {"use_reentrant": False}
    if recompute == "Selective":
        options["context_fn"] = partial(create_selective_checkpoint_contexts, _policy)
    model.gradient_checkpointing_enable(options)


def _policy(context: Any, operator: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    keep = operator in _KEPT or operator.name() in _KEPT_NAMES
    return CheckpointPolicy.MUST_SAVE if keep else CheckpointPolicy.PREFER_RECOMPUTE
