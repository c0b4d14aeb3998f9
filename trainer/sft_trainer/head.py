"""The model's output layer, answering with the loss of a chunk of positions at a time.

Logits of all positions times the vocabulary are the largest tensor of a step, and nobody needs them: while it is
asked, the layer itself turns hidden states into loss, and into the gradients of hidden states and weights, chunk by
chunk. It stays the module it was, so that whoever partitions its weights (ZeRO-3) fetches them once for all chunks
and sees one gradient. It knows nothing of batches, and of models only where their head is.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import nn

from sft_trainer import upcast
from sft_trainer.softmax import Objective, Share, softmax_gradient

# Bytes of logits at once. Every further chunk reads and writes the weights' whole gradient once more, which a chunk of
# 700 rows on a CPU, 4,000 on a GPU hides behind its matrix products.
_CHUNK_BYTES = {"cpu": 256 * 2**20, "gpu": 1024 * 2**20}


class Asked:
    """A linear output layer; while it is asked, hidden states [K, H] give their loss, fp32 [1, 1], not logits [K, V].

    Two dimensions, so that what a model does to logits it can do to this; selfcheck.py sees whether it did.
    """

    asked: tuple[torch.Tensor, Objective] | None = None  # targets [K]

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Logits, or the loss."""
        if self.asked is None:
            logits: torch.Tensor = super().forward(input)  # type: ignore[misc]
            return logits
        targets, objective = self.asked
        return linear_cross_entropy(input, *self.tensors(), targets, objective, self.share()).reshape(1, 1)

    def tensors(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Weight and bias."""
        raise NotImplementedError

    def share(self) -> Share | None:
        """Which part of the vocabulary they are; None: all of it."""
        return None


class LossHead(Asked, nn.Linear):
    """A plain one."""

    def tensors(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Weight and bias."""
        return self.weight, self.bias


KINDS: dict[type, type] = {nn.Linear: LossHead}
"""Linear layers, and what they become; tensor_parallel.py knows more."""


def install(model: Any) -> bool:
    """Make the output layer of `model` one that can be asked; False where it is not a plain linear layer."""
    layer = _output_layer(model)
    if type(layer) in KINDS:
        layer.__class__ = KINDS[type(layer)]
    elif _has_trained_rows(layer):
        layer.__class__ = _with_trained_rows(type(layer))
    return isinstance(layer, Asked)


def uninstall(model: Any) -> None:
    """Make it an ordinary layer again."""
    layer: Any = _output_layer(model)
    if isinstance(layer, Asked):
        kinds = type(layer).__mro__
        layer.__class__ = kinds[kinds.index(Asked) + 1]


def _has_trained_rows(layer: Any) -> bool:
    """Whether it is peft's for a few trained rows of a linear layer (lora.py), in a class that we do not import."""
    return hasattr(layer, "get_merged_weights") and type(layer.get_base_layer()) is nn.Linear


def _with_trained_rows(kind: type) -> type:
    def tensors(self: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
        return self.get_merged_weights(self.active_adapters), self.get_base_layer().bias

    return type("TrainedRowsLossHead", (Asked, kind), {"tensors": tensors})


@contextmanager
def answering(model: Any, targets: torch.Tensor, objective: Objective) -> Iterator[bool]:
    """In here the forward pass of `model` gives the loss as its `logits`; False: it gives logits as ever."""
    layer = _output_layer(model)
    if not isinstance(layer, Asked):
        yield False
        return
    layer.asked = (targets, objective)
    try:
        yield True
    finally:
        layer.asked = None


def _output_layer(model: Any) -> Any:
    model = getattr(model, "module", model)  # of a DeepSpeed engine
    find = getattr(model, "get_output_embeddings", None)
    layer = find() if find is not None else None
    return getattr(layer, "token_adapter", layer)  # the part of peft's wrapper that computes


def linear_cross_entropy(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    targets: torch.Tensor,
    objective: Objective,
    share: Share | None = None,
) -> torch.Tensor:
    """The loss of logits = hidden [K, H] @ weight [V, H]^T + bias [V], an fp32 scalar. Backward once only.

    Weight and bias may be a `share` of the vocabulary; then all ranks of its group call this, with the same `hidden`.
    """
    tensors = [hidden, weight, bias]
    if not torch.is_grad_enabled():  # a function with its own gradient cannot see that inside
        tensors = [None if tensor is None else tensor.detach() for tensor in tensors]
    return cast(torch.Tensor, _LinearCrossEntropy.apply(*tensors, targets, objective, share))


class _LinearCrossEntropy(torch.autograd.Function):
    """Loss and gradients in the forward pass; sums over chunks in fp32, rounded to the parameters' type once."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        targets: torch.Tensor,
        objective: Objective,
        share: Share | None,
    ) -> torch.Tensor:
        objective, power = objective.split()
        wanted = [bool(needed) for needed in ctx.needs_input_grad[:3]]
        types = [None if each is None else each.dtype for each in (hidden, weight, bias)]
        if upcast.wanted(weight):
            hidden, weight, bias = hidden.float(), weight.float(), None if bias is None else bias.float()
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        of_hidden = torch.empty_like(hidden) if wanted[0] else None
        of_weight: torch.Tensor | None = None
        of_bias: torch.Tensor | None = None
        for start, stop in _chunks(len(targets), weight, share):
            rows = hidden[start:stop]
            logits = rows @ weight.t() if bias is None else torch.addmm(bias, rows, weight.t())
            gradient = logits if any(wanted) else None
            part = objective.rows(start, stop)
            total += softmax_gradient(logits, targets[start:stop], part, gradient, share)
            if of_hidden is not None:
                torch.mm(logits, weight, out=of_hidden[start:stop])
            if wanted[1]:
                of_weight = _added(of_weight, logits.t() @ rows)
            if wanted[2]:
                of_bias = _added(of_bias, logits.sum(0))
            del logits, gradient  # else the next chunk is computed beside this one
        if share is not None and of_hidden is not None:
            share.sum(of_hidden)
        gradients = zip((of_hidden, of_weight, of_bias), types, strict=True)
        ctx.gradients = [None if each is None else each.to(kind) for each, kind in gradients]
        ctx.power = power
        return total * power

    @staticmethod
    def backward(ctx: Any, *outputs: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        gradients, ctx.gradients = ctx.gradients, None  # the last reference: autograd need not copy them
        factor = outputs[0] * ctx.power
        return (*(None if g is None else g.mul_(factor.to(g.dtype)) for g in gradients), None, None, None)


def _chunks(count: int, weight: torch.Tensor, share: Share | None) -> Iterator[tuple[int, int]]:
    """Ranges of `count` positions, as few as the budget allows and equally long; the same on all ranks of a share."""
    budget = _CHUNK_BYTES["cpu" if weight.device.type == "cpu" else "gpu"]
    columns = weight.shape[0] if share is None else max(share.sizes)
    most = max(1, budget // (columns * weight.element_size()))
    number = -(-count // most)
    rows = -(-count // number)
    for start in range(0, count, rows):
        yield start, min(start + rows, count)


def _added(total: torch.Tensor | None, part: torch.Tensor) -> torch.Tensor:
    """The running sum over chunks: the first as it is, from the second in fp32."""
    return part if total is None else total.float().add_(part)
