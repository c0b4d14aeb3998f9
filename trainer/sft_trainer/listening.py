"""Who else wants to hear how a training goes: the report's chronicle, and trackers like TensorBoard."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from sft_trainer.config import CheckpointFact

if TYPE_CHECKING:
    from sft_trainer.reporting import StepFacts

logger = logging.getLogger(__name__)


class Listener:
    """Hears everything that a `Reporter` of rank 0 is told; overrides what it is interested in."""

    def started(self, total_steps: int, resumed_from: int | None, lost: Mapping[int, float]) -> None:
        """The first step is next; `lost` are the steps, with their seconds, that are about to happen again."""

    def first_step(self, phases: Mapping[str, float]) -> None:
        """The first step of this run ended; what the time since the process began was spent on."""

    def step(self, facts: StepFacts) -> None:
        """An optimizer step ended."""

    def evaluated(self, step: int, loss: float, perplexity: float) -> None:
        """An evaluation ended."""

    def saved(self, fact: CheckpointFact, seconds: float) -> None:
        """A checkpoint was committed."""

    def trained(self, peaks: Sequence[int]) -> None:
        """All steps are done; `peaks` is the highest memory of every rank in bytes."""

    def close(self, seconds: float) -> None:
        """The run ends; there are so many seconds left."""


class Audience:
    """All listeners of a run. One that raises is heard of once, and hears no more."""

    def __init__(self, listeners: Iterable[Listener] = ()) -> None:
        self._listeners = list(listeners)

    def tell(self, what: Callable[[Listener], None]) -> None:
        """Tell everyone."""
        for one in tuple(self._listeners):
            try:
                what(one)
            except Exception as error:
                logger.warning("%s is left out from here on: %r", type(one).__name__, error)
                self._listeners.remove(one)
