"""Sum of token cross entropies at supervised positions, in fp32.

A sum and not a mean: the loop's `scale` divides by the supervised tokens of the whole global batch, which makes
the gradient exact for every batch shape. It is applied in fp32, before the gradient is rounded to the logits'
type: the scale itself, rounded to bf16, would be wrong by up to 0.4 % for all tokens alike. Logits exist for
supervised positions only, and where the head is a plain linear layer (head.py) for a chunk of them at a time.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import nn

from sft_trainer import head
from sft_trainer.collate import IGNORED, Batch
from sft_trainer.config import Loss
from sft_trainer.errors import UserError
from sft_trainer.softmax import Objective, softmax_gradient

# Results of a plain matrix product: nothing else needs these values in the backward pass.
_REUSABLE = ("UnsafeViewBackward0", "ViewBackward0", "MmBackward0", "AddmmBackward0", "ReshapeAliasBackward0")


class _CrossEntropySum(torch.autograd.Function):
    """Cross entropy with its gradient computed in the forward pass, piece by piece."""

    @staticmethod
    def forward(
        ctx: Any, logits: torch.Tensor, targets: torch.Tensor, objective: Objective, in_place: bool
    ) -> torch.Tensor:
        gradient = logits.detach() if in_place else torch.empty_like(logits)
        normal, power = objective.split()
        total = softmax_gradient(logits.detach(), targets, normal, gradient)
        ctx.save_for_backward(gradient)
        ctx.power = power
        return total * power

    @staticmethod
    def backward(ctx: Any, *outputs: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient.mul_((outputs[0] * ctx.power).to(gradient.dtype)), None, None, None


def cross_entropy_sum(logits: torch.Tensor, targets: torch.Tensor, objective: Objective) -> torch.Tensor:
    """The loss of logits [K, V] and targets int64 [K], an fp32 scalar.

    With gradients enabled the values of `logits` are consumed. Backward once only.
    """
    if not (torch.is_grad_enabled() and logits.requires_grad):
        return softmax_gradient(logits.detach(), targets, objective, None)
    in_place = type(logits.grad_fn).__name__ in _REUSABLE
    return cast(torch.Tensor, _CrossEntropySum.apply(logits, targets, objective, in_place))


def supervised_loss(
    model: nn.Module,
    batch: Batch,
    scale: float = 1.0,
    extra: Loss | None = None,
) -> torch.Tensor:
    """Forward pass of `model` (a DeepSpeed engine or a plain model) and `scale` times the loss of `batch`.

    `extra`: what is minimised beside the cross entropy; the value returned is without it, its gradient is not.

    A batch without a supervised position still runs the whole model, head included, with a loss and a gradient
    of exactly zero: under ZeRO every rank has to take part in every collective.
    """
    keep = batch.targets != IGNORED
    weights = None if batch.weights is None else batch.weights[keep]
    targets, objective = batch.targets[keep], _objective(scale, weights, extra)
    if batch.supervised == 0:
        keep = torch.zeros_like(keep)
        keep[0, 0] = True
        targets, objective = torch.zeros_like(batch.targets[keep]), Objective(0.0)
    with head.answering(model, targets, objective) as answers:
        answer: torch.Tensor = model(**batch.inputs(), logits_to_keep=keep).logits
    if answers:
        return answer.reshape(())
    if answer.numel() != len(targets) * answer.shape[-1]:
        raise UserError(
            "UnsupportedModel",
            f"{type(getattr(model, 'module', model)).__name__} passes over logits_to_keep: it answers with "
            f"{answer.numel() // answer.shape[-1]} rows of logits where {len(targets)} were asked for, and the loss "
            "would be taken at wrong positions; take another model",
        )
    return cross_entropy_sum(answer.reshape(-1, answer.shape[-1]), targets, objective)


def _objective(scale: float, weights: torch.Tensor | None, extra: Loss | None) -> Objective:
    if extra is None:
        return Objective(scale, weights)
    return Objective(scale, weights, extra.label_smoothing, extra.z_loss)
