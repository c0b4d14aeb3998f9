"""Matrix products of bf16 on a CPU that has none: computed in fp32, which is four times as fast as bf16 emulated.

Weights, activations and what is kept for the backward pass stay bf16; a product's matrices are widened while it is
computed, and the result is rounded once, as a CPU with bf16 does it by itself. Plain linear layers, the attention of
attention.py and the loss head are computed like this; what else multiplies (docs/trainer.md has a list) is right and
slow.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from sft_trainer import precision

LINEAR = "sft_trainer::upcast_linear"
"""The operator of a linear layer, by which recompute.py knows it: what is in it nobody keeps."""

torch.library.define(LINEAR, "(Tensor input, Tensor weight, Tensor? bias) -> Tensor")


def wanted(tensor: torch.Tensor) -> bool:
    """Whether products with it are to be computed in fp32."""
    return tensor.dtype == torch.bfloat16 and tensor.device.type == "cpu" and not precision.cpu_has_bf16()


def enable(model: nn.Module) -> None:
    """Let the linear layers of `model` compute in fp32, where that is faster."""
    for module in model.modules():
        if type(module) is nn.Linear and wanted(module.weight):
            module.__class__ = UpcastLinear


class UpcastLinear(nn.Linear):
    """A linear layer, computed in fp32."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Of [..., in], [..., out] in the type of the input."""
        return cast(torch.Tensor, _Linear.apply(input, self.weight, self.bias))


class _Linear(torch.autograd.Function):
    """Keeps its tensors as they are: autograd would keep the wide ones."""

    @staticmethod
    def forward(
        ctx: Any, input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        of_input, of_weight, _ = ctx.needs_input_grad
        ctx.save_for_backward(input if of_weight else None, weight if of_input else None)
        return cast(torch.Tensor, torch.ops.sft_trainer.upcast_linear(input, weight, bias))

    @staticmethod
    def backward(ctx: Any, *outputs: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (output,), (input, weight) = outputs, ctx.saved_tensors
        rows = output.reshape(-1, output.shape[-1]).float()
        *_, of_bias = ctx.needs_input_grad
        of_input = None if weight is None else (rows @ weight.float()).to(output.dtype)
        of_weight = None if input is None else rows.t() @ input.reshape(-1, input.shape[-1]).float()
        return (
            None if of_input is None else of_input.view(*output.shape[:-1], of_input.shape[1]),
            None if of_weight is None else of_weight.to(output.dtype),
            rows.sum(0).to(output.dtype) if of_bias else None,
        )


@torch.library.impl(LINEAR, "cpu")
def _linear(input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    return F.linear(input.float(), weight.float(), None if bias is None else bias.float()).to(input.dtype)


def computed(function: Callable[..., torch.Tensor], *tensors: torch.Tensor) -> torch.Tensor:
    """`function` of `tensors` in fp32, where products with them are wanted so; else as they are.

    It is computed again in the backward pass, so that nothing wide is kept, but by an activation checkpoint around it
    that keeps results of attention.
    """
    if not wanted(tensors[0]):
        return function(*tensors)

    def wide(*narrow: torch.Tensor) -> torch.Tensor:
        return function(*(tensor.float() for tensor in narrow)).to(narrow[0].dtype)

    return checkpoint(wide, *tensors, use_reentrant=False)
