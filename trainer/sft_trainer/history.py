"""What the evaluations of a training have shown so far: which was best, and how long there was no better one.

Pure, and part of every checkpoint, so that a resumed training stops early at the very step at which an
uninterrupted one does. It must not know how an evaluation is made.
"""

from __future__ import annotations

import math

from sft_trainer.config import EarlyStopping, Evaluation, Report


class Point(Report):
    """An evaluation: the loss, in nats per supervised token, after so many steps."""

    step: int
    loss: float


class History(Report):
    """`evaluated` is the step of the last evaluation, whatever it gave, and `best` has the lowest loss of all. `mark`
    was the last to be lower than the mark before it by `minDelta`, and `waited` counts the evaluations since: a slow
    descent adds up, until it is an improvement too.
    """

    evaluated: int | None = None  # unknown to older checkpoints
    last: Point | None = None
    best: Point | None = None
    mark: Point | None = None
    waited: int = 0

    def loss_at(self, step: int) -> float | None:
        """The evaluation loss after `step` steps, if that was the last evaluation."""
        return self.last.loss if self.last is not None and self.last.step == step else None

    def was_evaluated(self, step: int) -> bool:
        """Whether the last evaluation was after `step` steps."""
        return self.loss_at(step) is not None if self.evaluated is None else self.evaluated == step

    def is_best(self, step: int) -> bool:
        """Whether the evaluation after `step` steps is the best so far."""
        return self.best is not None and self.best.step == step


def after(history: History, step: int, loss: float, min_delta: float) -> History:
    """`history` with one more evaluation. One that is no number is no improvement."""
    if not math.isfinite(loss):
        return history.model_copy(update={"evaluated": step, "waited": history.waited + 1})
    point = Point(step=step, loss=loss)
    best = point if history.best is None or loss < history.best.loss else history.best
    if history.mark is None or loss < history.mark.loss - min_delta:
        return History(evaluated=step, last=point, best=best, mark=point)
    return History(evaluated=step, last=point, best=best, mark=history.mark, waited=history.waited + 1)


def is_exhausted(history: History, stopping: EarlyStopping | None) -> bool:
    """Whether patience is at an end."""
    return stopping is not None and history.waited >= stopping.patience


def is_due(evaluation: Evaluation, done: int, steps_per_epoch: int) -> bool:
    """Whether to evaluate after `done` steps. `periodSeconds` is for whoever has a clock.

    With `periodEpochs` p and s steps per epoch the k-th evaluation follows step ceil(k p s).
    """
    if evaluation.period_steps is not None:
        return done % evaluation.period_steps == 0
    if evaluation.period_epochs is not None:
        every = evaluation.period_epochs * steps_per_epoch
        return _periods(done, every) > _periods(done - 1, every)
    return False


def _periods(done: int, every: float) -> int:
    return math.floor(done / every + 1e-9)  # 0.1 of 30 steps is 3 steps, also in binary
