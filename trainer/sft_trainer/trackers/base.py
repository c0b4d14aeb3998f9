"""One thread per tracker between the training and tools that import slowly, block, or go through a network.

The training only puts values into a queue. A tracker that fails is heard of once; one that hangs is left
behind: its queue fills, its values are dropped, and the end of the run waits for it a bounded time.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from sft_trainer.listening import Listener

if TYPE_CHECKING:
    from sft_trainer.reporting import StepFacts

logger = logging.getLogger(__name__)

_WAITING = 10_000  # values of so many steps; a tool that is further behind misses some

Values = Mapping[str, float]


@dataclass(frozen=True)
class TrackedRun:
    """What a tracker has to know of a run. All attempts of a job are one run to it, called by the job's uid."""

    uid: str
    name: str
    folder: Path  # jobs/<name>/report
    config: Mapping[str, Any]
    resumed_from: int | None  # what comes after this step will be told again


class Tracker(Protocol):
    """A tool that is told values. Its methods run in its own thread, and may raise."""

    def log(self, step: int, values: Values) -> None:
        """These values belong to this step."""
        ...

    def close(self) -> None:
        """Nothing more comes: bring everything home."""
        ...


Maker = Callable[[TrackedRun], Tracker]


class Feed:
    """The queue and the thread of one tracker."""

    def __init__(self, name: str, make: Maker, run: TrackedRun) -> None:
        self.name = name
        self._queue: queue.Queue[tuple[int, Values] | None] = queue.Queue(_WAITING)
        self._dropped = False
        self._thread = threading.Thread(target=self._work, args=(make, run), name=name, daemon=True)
        self._thread.start()

    def put(self, step: int, values: Values) -> None:
        """Hand values over, without waiting."""
        if not self._thread.is_alive():
            return
        try:
            self._queue.put_nowait((step, values))
        except queue.Full:
            if not self._dropped:
                logger.warning("%s is too slow and misses values, training goes on", self.name)
            self._dropped = True

    def end(self) -> None:
        """Say that nothing more comes."""
        with contextlib.suppress(queue.Full):
            self._queue.put_nowait(None)

    def join(self, seconds: float) -> None:
        """Wait for the last values, but not for a tool that hangs."""
        self._thread.join(max(0.0, seconds))
        if self._thread.is_alive():
            logger.warning("%s did not finish in time and may lack the last values", self.name)

    def _work(self, make: Maker, run: TrackedRun) -> None:
        try:
            tracker = make(run)
            while (item := self._queue.get()) is not None:
                tracker.log(*item)
            tracker.close()
        except BaseException as error:  # a tool may even call sys.exit
            logger.warning("%s gets no more values, training goes on: %r", self.name, error)


class Tracking(Listener):
    """Passes the values of a training on to its trackers."""

    def __init__(self, run: Callable[[int | None], TrackedRun], makers: Iterable[tuple[str, Maker]]) -> None:
        """`run` makes the run, once it is known from where it goes on."""
        self._run, self._makers = run, list(makers)
        self._feeds: list[Feed] = []

    def started(self, total_steps: int, resumed_from: int | None, lost: Mapping[int, float]) -> None:
        """Start the threads."""
        run = self._run(resumed_from)
        self._feeds = [Feed(name, make, run) for name, make in self._makers]

    def step(self, facts: StepFacts) -> None:
        """Curves of the training."""
        values = {
            "train/loss": facts.loss,
            "train/learning_rate": facts.learning_rate,
            "train/gradient_norm": facts.gradient_norm,
            "train/epoch": facts.epoch,
            "train/tokens_per_second": facts.tokens / facts.seconds if facts.seconds > 0 else None,
            "train/loss_scale": facts.loss_scale,
        }
        self._put(facts.step, {name: value for name, value in values.items() if value is not None})

    def evaluated(self, step: int, loss: float, perplexity: float) -> None:
        """Curves of the evaluations."""
        self._put(step, {"eval/loss": loss, "eval/perplexity": perplexity})

    def close(self, seconds: float) -> None:
        """End all threads; `seconds` are for all of them together."""
        deadline = time.monotonic() + seconds
        for feed in self._feeds:
            feed.end()
        for feed in self._feeds:
            feed.join(deadline - time.monotonic())

    def _put(self, step: int, values: Values) -> None:
        for feed in self._feeds:
            feed.put(step, values)
