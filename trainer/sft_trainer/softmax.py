"""Softmax cross entropy of given logits and its gradient, in fp32, a piece at a time.

The arithmetic that both ways to a loss share: from logits (loss.py) and from hidden states (head.py).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch

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


def softmax_gradient(
    logits: torch.Tensor, targets: torch.Tensor, objective: Objective, gradient: torch.Tensor | None
) -> torch.Tensor:
    """The plain cross entropy of logits [K, V] and targets [K], weighted and scaled, an fp32 scalar.

    The gradient of the whole objective in the logits is written to `gradient` [K, V], which may be `logits` itself.
    """
    total = torch.zeros((), dtype=torch.float32, device=logits.device)
    rows = max(1, _PIECE_BYTES["cpu" if logits.device.type == "cpu" else "gpu"] // (4 * logits.shape[-1]))
    for start in range(0, len(targets), rows):
        stop = min(start + rows, len(targets))
        wanted, part = targets[start:stop, None], objective.rows(start, stop)
        piece = torch.log_softmax(logits[start:stop], dim=-1, dtype=torch.float32)
        losses = -piece.gather(1, wanted)
        factor = torch.full_like(losses, part.scale)
        if part.weights is not None:
            factor *= part.weights[:, None]
        total += (losses * factor).sum()
        if gradient is not None:
            log_z = logits[start:stop].gather(1, wanted) + losses
            piece.exp_().mul_(factor * (1 + 2 * part.z_loss * log_z))
            piece.scatter_add_(1, wanted, factor * (part.label_smoothing - 1))
            if part.label_smoothing:
                piece -= factor * (part.label_smoothing / logits.shape[-1])
            gradient[start:stop].copy_(piece)
    return total
