"""Sum of token cross entropies at supervised positions, in fp32.

A sum and not a mean: the loop's `scale` divides by the supervised tokens of the whole global batch, which makes
the gradient exact for every batch shape. It is applied in fp32, before the gradient is rounded to the logits'
type: the scale itself, rounded to bf16, would be wrong by up to 0.4 % for all tokens alike. Logits exist for
supervised positions only, and their gradient is written into the same memory chunk by chunk, so that the
largest tensor of a training step exists once.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import nn

from sft_trainer.collate import IGNORED, Batch

_CHUNK_BYTES = 64 * 2**20  # of fp32 logits; smaller chunks are slower on a CPU
# Results of a plain matrix product: nothing else needs these values in the backward pass.
_REUSABLE = ("UnsafeViewBackward0", "ViewBackward0", "MmBackward0", "AddmmBackward0", "ReshapeAliasBackward0")


class _CrossEntropySum(torch.autograd.Function):
    """Cross entropy with its gradient computed in the forward pass, chunk by chunk."""

    @staticmethod
    def forward(
        ctx: Any,
        logits: torch.Tensor,
        targets: torch.Tensor,
        scale: float,
        weights: torch.Tensor | None,
        in_place: bool,
    ) -> torch.Tensor:
        gradient = logits.detach() if in_place else torch.empty_like(logits)
        total = torch.zeros((), dtype=torch.float32, device=logits.device)
        rows = max(1, _CHUNK_BYTES // (4 * logits.shape[-1]))
        for start in range(0, logits.shape[0], rows):
            wanted = targets[start : start + rows]
            chunk = logits[start : start + rows].detach().float()
            normaliser = torch.logsumexp(chunk, dim=-1, keepdim=True)
            losses = normaliser.squeeze(-1) - chunk.gather(1, wanted[:, None]).squeeze(-1)
            chunk = torch.exp(chunk - normaliser)
            chunk.scatter_add_(1, wanted[:, None], torch.full_like(normaliser, -1.0))
            if weights is not None:
                losses = losses * weights[start : start + rows]
                chunk.mul_(weights[start : start + rows, None])
            total += losses.sum()
            gradient[start : start + rows] = chunk.mul_(scale).to(gradient.dtype)
        ctx.save_for_backward(gradient)
        return total * scale

    @staticmethod
    def backward(ctx: Any, *outputs: torch.Tensor) -> tuple[torch.Tensor, None, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient.mul_(outputs[0].to(gradient.dtype)), None, None, None, None


def cross_entropy_sum(
    logits: torch.Tensor, targets: torch.Tensor, scale: float = 1.0, weights: torch.Tensor | None = None
) -> torch.Tensor:
    """`scale` times the sum over K positions of -weight log softmax(logits)[target], as an fp32 scalar.

    logits [K, V], targets int64 [K], weights fp32 [K], None: all are 1.

    With gradients enabled the values of `logits` are consumed. Backward once only.
    """
    if not (torch.is_grad_enabled() and logits.requires_grad):
        with torch.no_grad():
            return _forward_only(logits, targets, weights) * scale
    in_place = type(logits.grad_fn).__name__ in _REUSABLE
    return cast(torch.Tensor, _CrossEntropySum.apply(logits, targets, scale, weights, in_place))


def _forward_only(logits: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor | None) -> torch.Tensor:
    rows = max(1, _CHUNK_BYTES // (4 * logits.shape[-1]))
    total = torch.zeros((), dtype=torch.float32, device=logits.device)
    for start in range(0, logits.shape[0], rows):
        part, wanted = logits[start : start + rows].float(), targets[start : start + rows]
        if weights is None:
            total += nn.functional.cross_entropy(part, wanted, reduction="sum")
        else:
            losses = nn.functional.cross_entropy(part, wanted, reduction="none")
            total += (losses * weights[start : start + rows]).sum()
    return total


def supervised_loss(model: nn.Module, batch: Batch, scale: float = 1.0) -> torch.Tensor:
    """Forward pass of `model` (a DeepSpeed engine or a plain model) and `scale` times the loss of `batch`.

    A batch without a supervised position still runs the whole model, head included, with a loss of exactly
    zero: under ZeRO every rank has to take part in every collective.
    """
    keep = batch.targets != IGNORED
    empty = batch.supervised == 0
    if empty:
        keep = torch.zeros_like(keep)
        keep[0, 0] = True
    logits: torch.Tensor = model(**batch.inputs(), logits_to_keep=keep).logits
    if logits.dim() != 2:
        logits = logits.reshape(-1, logits.shape[-1])
    if empty:
        return logits.float().sum() * 0.0
    weights = None if batch.weights is None else batch.weights[keep]
    return cross_entropy_sum(logits, batch.targets[keep], scale, weights)
