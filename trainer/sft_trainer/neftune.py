"""Noise on the input embeddings while training (NEFTune, https://arxiv.org/abs/2310.05914).

Hooks on the model, so that nobody else knows: uniform noise of alpha / sqrt(length x hidden size), where length is
that of the position's own document, packed or not. In evaluation mode there is none. The draws come from the rank's
own generator, whose state is part of a checkpoint.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from sft_trainer import sequence_parallel
from sft_trainer.attention import document_lengths


def install(model: Any, alpha: float, group: sequence_parallel.Group | None = None) -> None:
    """Let `model` add noise in training mode, from its next forward pass on; `group` shares its sequences."""
    noise = _Noise(alpha, group)
    model.register_forward_pre_hook(noise.begin, with_kwargs=True)
    model.get_input_embeddings().register_forward_hook(noise.add)


class _Noise:
    def __init__(self, alpha: float, group: sequence_parallel.Group | None) -> None:
        self.alpha, self.group = alpha, group
        self.lengths: torch.Tensor | None = None  # int64 [B, T]; None = not training

    def begin(self, model: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        """Before the model's forward pass."""
        self.lengths = lengths_of_documents(**kwargs, group=self.group) if model.training else None

    def add(self, module: nn.Module, args: Any, embedded: torch.Tensor) -> torch.Tensor:
        """After the embedding's: embedded [B, T, H]."""
        if self.lengths is None:
            return embedded
        bound = self.alpha / (self.lengths[..., None] * embedded.shape[-1]).sqrt()
        noise = torch.rand(embedded.shape, device=embedded.device) * 2 - 1
        return embedded + (noise * bound).to(embedded.dtype)


def lengths_of_documents(
    input_ids: torch.Tensor,
    position_ids: torch.Tensor | None = None,
    attention_mask: torch.Tensor | None = None,
    group: sequence_parallel.Group | None = None,
    **_: Any,
) -> torch.Tensor:
    """For every position [B, T] the number of tokens of the document it is in, those on other ranks included."""
    if position_ids is not None:
        positions = sequence_parallel.whole(position_ids, group)
        rows = [torch.tensor(document_lengths(row), device=row.device) for row in positions]
        lengths = torch.stack([sizes.repeat_interleave(sizes) for sizes in rows])
        return sequence_parallel.own_part(lengths, group)
    if attention_mask is not None:
        return attention_mask.sum(1, keepdim=True).expand_as(input_ids)
    return torch.full_like(input_ids, input_ids.shape[1])
