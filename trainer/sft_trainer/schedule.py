"""Learning rate as a pure function of the step.

DeepSpeed's schedulers carry state of their own and count micro-steps; here the only state is the number of
finished steps, so a resumed run continues the same curve by construction.
"""

from __future__ import annotations

import math

from sft_trainer.config import Scheduler


def learning_rate(step: int, total_steps: int, peak: float, scheduler: Scheduler) -> float:
    """The rate of the optimizer step with 0-based index `step` out of `total_steps`.

    Linear warm-up: step i of w takes peak * (i + 1) / w. Then Cosine (https://arxiv.org/abs/1608.03983,
    without restarts) or Linear decay from `peak` towards `minLearningRate`, or Constant, or WSD
    (https://arxiv.org/abs/2404.06395): constant, and over the last `decaySteps` a decay by 1 - sqrt, which ends
    at a lower loss than a linear one (https://arxiv.org/abs/2405.18392).
    """
    warmup = scheduler.warmup_steps
    if step < warmup:
        return peak * (step + 1) / warmup
    if scheduler.type == "Constant":
        return peak
    start = warmup
    if scheduler.type == "WSD":
        start = max(warmup, total_steps - decay_steps(total_steps, scheduler))
    progress = min(1.0, max(0, step - start) / max(1, total_steps - start))
    low = scheduler.min_learning_rate
    return low + (peak - low) * _share_left(scheduler.type, progress)


def decay_steps(total_steps: int, scheduler: Scheduler) -> int:
    """Steps of WSD's decay. Unset: a fifth of all, enough to end as low as a cosine does (2405.18392)."""
    return -(-total_steps // 5) if scheduler.decay_steps is None else scheduler.decay_steps


def _share_left(kind: str, progress: float) -> float:
    """How much of the way from the minimum to the peak is left: 1 at `progress` 0, 0 at 1."""
    if kind == "Linear":
        return 1.0 - progress
    if kind == "WSD":
        return 1.0 - math.sqrt(progress)
    return 0.5 * (1.0 + math.cos(math.pi * progress))
