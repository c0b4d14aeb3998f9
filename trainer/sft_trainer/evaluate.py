"""Mean loss over all supervised tokens of the held-out rows, by their weights, exact whatever the number of ranks."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Protocol

import torch

from sft_trainer.batches import Plan
from sft_trainer.collate import Rows
from sft_trainer.distributed import World
from sft_trainer.engine import Engine
from sft_trainer.loss import supervised_loss
from sft_trainer.prefetch import Prefetch

_LARGEST_EXPONENT = 700.0  # exp of more is infinite, which JSON cannot say


@dataclass(frozen=True)
class Evaluation:
    """Loss in nats per supervised token, and what it took."""

    loss: float
    seconds: float


class Stop(Protocol):
    """Says when to give up."""

    @property
    def requested(self) -> bool:
        """Whether to stop before the end."""
        ...


def perplexity(loss: float) -> float:
    """exp(loss)."""
    return math.exp(min(loss, _LARGEST_EXPONENT))


def evaluate(engine: Engine, rows: Rows, plan: Plan, world: World, stop: Stop) -> Evaluation | None:
    """One pass over `rows` in the batches of `plan`. Collective.

    None where nothing is supervised, or when the group was asked to stop before the end.
    """
    start = time.perf_counter()
    losses = torch.zeros((), dtype=torch.float64, device=world.device)
    weight, stopped = 0.0, 0.0
    engine.eval()
    with torch.no_grad(), Prefetch(rows, plan, world, 0) as ahead:
        for step in range(plan.total_steps):
            (stopped,) = world.sum([stop.requested])
            if stopped:
                break
            for batch in ahead.take(step):
                losses += supervised_loss(engine, batch)
                weight += batch.weight
    engine.train()
    total, weight = world.sum([float(losses), weight])
    if weight == 0 or stopped:
        return None
    return Evaluation(total / weight, time.perf_counter() - start)
