"""Softmax cross entropy of given logits and its gradient, in fp32, a piece at a time.

The arithmetic that both ways to a loss share: from logits (loss.py) and from hidden states (head.py).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
import torch.distributed as dist

# Bytes of fp32 probabilities worked on at once: a CPU is five times faster when they stay in its cache (measured).
_PIECE_BYTES = {"cpu": 4 * 2**20, "gpu": 64 * 2**20}


@dataclass(frozen=True)
class Objective:
    """What is minimised: `scale` times the sum over positions of weight x (cross entropy + what is added to it).

    With label smoothing e the target is 1 - e of the wanted token and e of all tokens alike
    (https://arxiv.org/abs/1512.00567, section 7). The z-loss is `z_loss` x log(Z)^2, Z the sum of exp(logits), which
    keeps logits from drifting (https://arxiv.org/abs/2204.02311, section 5).
    """

    scale: float = 1.0
    weights: torch.Tensor | None = None  # fp32 [K], of the positions; None = all 1
    label_smoothing: float = 0.0
    z_loss: float = 0.0

    def split(self) -> tuple[Objective, float]:
        """The same with a scale of 0.5 to 1, and the power of two that is missing.

        The power is for the backward pass, where it meets the loss scale of fp16 before anything underflows.
        """
        mantissa, exponent = math.frexp(self.scale)
        return replace(self, scale=mantissa), 2.0**exponent

    def rows(self, start: int, stop: int) -> Objective:
        """The same for positions `start` to `stop` only."""
        return self if self.weights is None else replace(self, weights=self.weights[start:stop])


@dataclass(frozen=True)
class Share:
    """The logits of some tokens, where the ranks of a group have those of a vocabulary between them."""

    group: dist.ProcessGroup
    sizes: tuple[int, ...]  # tokens of every rank
    rank: int  # in the group

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Over the group, in place."""
        dist.all_reduce(values, group=self.group)
        return values

    def log_softmax(self, logits: torch.Tensor) -> torch.Tensor:
        """Of this rank's columns, fp32."""
        piece = logits.to(torch.float32, copy=True)
        largest = piece.amax(1, keepdim=True)
        dist.all_reduce(largest, dist.ReduceOp.MAX, group=self.group)
        piece -= largest
        return piece.sub_(self.sum(piece.exp().sum(1, keepdim=True)).log_())

    def find(self, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The columns of `targets` here, and whether they are here; if not, the column is any."""
        columns = targets - sum(self.sizes[: self.rank])
        here = (columns >= 0) & (columns < self.sizes[self.rank])
        return columns.where(here, 0), here


def softmax_gradient(
    logits: torch.Tensor,
    targets: torch.Tensor,
    objective: Objective,
    gradient: torch.Tensor | None,
    share: Share | None = None,
) -> torch.Tensor:
    """The plain cross entropy of logits [K, V] and targets [K], weighted and scaled, an fp32 scalar.

    The gradient of the whole objective in the logits is written to `gradient` [K, V], which may be `logits` itself.
    With a `share` of the vocabulary it is that of this rank's logits, and the loss that of all; collective then.
    """
    total = torch.zeros((), dtype=torch.float32, device=logits.device)
    vocabulary, widest = (logits.shape[-1],) * 2 if share is None else (sum(share.sizes), max(share.sizes))
    rows = max(1, _PIECE_BYTES["cpu" if logits.device.type == "cpu" else "gpu"] // (4 * widest))
    for start in range(0, len(targets), rows):
        stop = min(start + rows, len(targets))
        part, columns = objective.rows(start, stop), targets[start:stop, None]
        here: torch.Tensor | None = None
        if share is None:
            piece = torch.log_softmax(logits[start:stop], dim=-1, dtype=torch.float32)
        else:
            piece, (columns, here) = share.log_softmax(logits[start:stop]), share.find(columns)
        losses = -_picked(piece, columns, here, share)
        factor = torch.full_like(losses, part.scale)
        if part.weights is not None:
            factor *= part.weights[:, None]
        total += (losses * factor).sum()
        if gradient is not None:
            log_z = _picked(logits[start:stop], columns, here, share) + losses
            piece.exp_().mul_(factor * (1 + 2 * part.z_loss * log_z))
            wanted = factor * (part.label_smoothing - 1)
            piece.scatter_add_(1, columns, wanted if here is None else wanted * here)
            if part.label_smoothing:
                piece -= factor * (part.label_smoothing / vocabulary)
            gradient[start:stop].copy_(piece)
    return total


def _picked(
    values: torch.Tensor, columns: torch.Tensor, here: torch.Tensor | None, share: Share | None
) -> torch.Tensor:
    """One value of each row, wherever it lies, [K, 1]."""
    found = values.gather(1, columns)
    return found if share is None or here is None else share.sum(found.float() * here)
