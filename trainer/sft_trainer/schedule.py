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
    without restarts) or Linear decay from `peak` towards `minLearningRate`, or Constant.
    """
    warmup = scheduler.warmup_steps
    if step < warmup:
        return peak * (step + 1) / warmup
    if scheduler.type == "Constant":
        return peak
    progress = min(1.0, (step - warmup) / max(1, total_steps - warmup))
    low = scheduler.min_learning_rate
    if scheduler.type == "Linear":
        return low + (peak - low) * (1.0 - progress)
    return low + (peak - low) * 0.5 * (1.0 + math.cos(math.pi * progress))
