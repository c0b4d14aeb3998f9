"""Adam whose weights are bf16 and nowhere else: `training.masterWeights: BF16` and `BF16StochasticRounding`.

bf16 has 8 significant bits, so an update smaller than 1/512 of a weight is lost when it is rounded to the nearest. Rounded
up or down by chance, in proportion to what is cut off, it is kept on average (https://arxiv.org/abs/2010.06192, section 4).
Moments stay fp32: with a beta2 of 0.999 the second one would not fall in bf16 either.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import chain
from typing import Any

import numpy as np
import torch

MOMENTS = ("exp_avg", "exp_avg_sq")
_PIECE = 2**22  # elements computed in fp32 at once: there is never an fp32 copy of all weights


class BF16Adam(torch.optim.Optimizer):
    """Adam, or AdamW where `decoupled`, of bf16 tensors of any shape: on ZeRO's flat partitions as well.

    The noise follows from `seed`, `rank` and the number of the step, so that a resumed training draws the same.
    """

    def __init__(
        self,
        params: Iterable[Any],
        *,
        lr: float,
        betas: tuple[float, float],
        eps: float,
        weight_decay: float,
        decoupled: bool,
        stochastic: bool,
        seed: int,
        rank: int,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})
        self.decoupled, self.stochastic = decoupled, stochastic
        self._seed, self._rank = seed, rank
        self._drawn_for = -1  # the step that the generator was seeded for
        self._generator: torch.Generator | None = None

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Update the weights that have gradients; DeepSpeed calls it once for each of its groups."""
        for group in self.param_groups:
            for weights in group["params"]:
                if weights.grad is not None:
                    self._update(weights, group)

    def _update(self, weights: torch.Tensor, group: dict[str, Any]) -> None:
        state = self.state[weights]
        if not state:
            state |= {key: torch.zeros_like(weights, dtype=torch.float32) for key in MOMENTS}
        state["step"] = number = int(state.get("step", 0)) + 1
        generator = self._noise(number, weights.device) if self.stochastic else None
        flat = [each.view(-1) for each in (weights, weights.grad, *(state[key] for key in MOMENTS))]
        for start in range(0, flat[0].numel(), _PIECE):
            piece, gradient, first, second = (each[start : start + _PIECE] for each in flat)
            updated = self._updated(piece.float(), gradient.float(), first, second, group, number)
            if generator is not None:
                add_noise(updated, generator)
            piece.copy_(updated)

    def _updated(
        self,
        weights: torch.Tensor,
        gradient: torch.Tensor,
        first: torch.Tensor,
        second: torch.Tensor,
        group: dict[str, Any],
        number: int,
    ) -> torch.Tensor:
        """`weights` after step `number`, all fp32 [n]; the moments are updated in place."""
        rate, (beta1, beta2), decay = group["lr"], group["betas"], group["weight_decay"]
        if decay and self.decoupled:
            weights.mul_(1 - rate * decay)
        elif decay:
            gradient = gradient.add(weights, alpha=decay)
        first.lerp_(gradient, 1 - beta1)
        second.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        spread = second.sqrt().div_(math.sqrt(1 - beta2**number)).add_(group["eps"])
        return weights.addcdiv_(first, spread, value=-rate / (1 - beta1**number))

    def _noise(self, number: int, device: torch.device) -> torch.Generator:
        """The generator, at its start where step `number` begins."""
        if self._generator is None:
            self._generator = torch.Generator(device)
        if self._drawn_for != number:
            (start,) = np.random.SeedSequence((self._seed, self._rank, number)).generate_state(1, np.uint64)
            self._generator.manual_seed(int(start) >> 1)
            self._drawn_for = number
        return self._generator

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Torch's own gives moments the weights' type: here they are fp32, and loaded as they were saved."""
        super().load_state_dict(state_dict)
        saved = chain.from_iterable(group["params"] for group in state_dict["param_groups"])
        mine = chain.from_iterable(group["params"] for group in self.param_groups)
        for index, weights in zip(saved, mine, strict=True):
            for key in MOMENTS if index in state_dict["state"] else ():
                moment = state_dict["state"][index][key]
                self.state[weights][key] = moment.to(weights.device, torch.float32, copy=True)
        self._drawn_for = -1


def add_noise(values: torch.Tensor, generator: torch.Generator) -> None:
    """Change fp32 `values` to bf16 numbers next to them, each with the chance that makes the mean right.

    The lower half of an fp32 number's bits is what bf16 lacks: a random number of as many bits is added, and then cut off. A
    value that bf16 has stays.
    """
    bits = values.view(torch.int32)
    bits.add_(torch.randint(0, 2**16, bits.shape, dtype=torch.int32, device=bits.device, generator=generator))
    bits.bitwise_and_(-(2**16))
