"""What the base model says to the held-out rows, for the report to compare the result with.

One evaluation more, as long as each of the others, before the first step. Nothing depends on it: it counts
neither for early stopping nor as the best, and where it takes too long it is given up.
"""

from __future__ import annotations

import logging
import time

from sft_trainer.evaluate import evaluate, perplexity
from sft_trainer.loop import Parts
from sft_trainer.stopping import StopSignal

logger = logging.getLogger(__name__)

LIMIT_SECONDS = 600.0  # of a gang that could be training


class Patience:
    """A request to stop, by somebody else or by the clock."""

    def __init__(self, stop: StopSignal, seconds: float) -> None:
        self._stop, self._deadline = stop, time.monotonic() + seconds

    @property
    def requested(self) -> bool:
        """Whether to stop."""
        return self._stop.requested or time.monotonic() >= self._deadline


def evaluate_base(parts: Parts, limit_seconds: float = LIMIT_SECONDS) -> None:
    """Evaluate before the first step and report it as of step 0. Collective."""
    if parts.held_out is None:
        return
    parts.reporter.phase("Evaluating")
    result = evaluate(parts.engine, *parts.held_out, parts.world, Patience(parts.stop, limit_seconds))
    if result is not None:
        parts.reporter.evaluated(0, result.loss, perplexity(result.loss), result.seconds)
    else:
        parts.reporter.evaluation_ended()
    parts.reporter.phase("Training")
    if result is None and parts.world.is_first and not parts.stop.requested:
        logger.info(
            "the base model is not evaluated: nothing is supervised, or more than %.0f s", limit_seconds
        )
