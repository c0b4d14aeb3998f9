"""Best evaluation, patience and cadence: tables."""

import math

import pytest

from sft_trainer.config import EarlyStopping, Evaluation
from sft_trainer.history import History, after, is_due, is_exhausted


def history(losses: list[float], min_delta: float = 0.0) -> History:
    """After evaluations at steps 1, 2, 3, ..."""
    found = History()
    for index, loss in enumerate(losses):
        found = after(found, index + 1, loss, min_delta)
    return found


@pytest.mark.parametrize(
    ("losses", "min_delta", "best", "waited"),
    [
        ([], 0.0, None, 0),
        ([2.0], 0.0, 1, 0),
        ([2.0, 1.5, 1.6, 1.7], 0.0, 2, 2),
        ([2.0, 2.0, 2.0], 0.0, 1, 2),  # the same again is not better
        ([2.0, 1.95, 1.9], 0.1, 3, 2),  # lower, but by too little: best, and yet waiting
        ([2.0, 1.95, 1.89], 0.1, 3, 0),  # a slow descent adds up
        ([2.0, 2.5, 1.0], 0.0, 3, 0),
        ([2.0, math.nan, math.inf], 0.0, 1, 2),
        ([math.nan], 0.0, None, 1),
    ],
)
def test_the_best_is_the_lowest_and_patience_asks_for_improvement(
    losses: list[float], min_delta: float, best: int | None, waited: int
) -> None:
    found = history(losses, min_delta)
    assert (found.best.step if found.best else None) == best
    assert found.waited == waited
    assert History.model_validate_json(found.to_json()) == found


def test_patience_ends_with_so_many_evaluations_in_a_row() -> None:
    stopping = EarlyStopping(metric="eval_loss", patience=2, min_delta=0.0)
    assert not is_exhausted(history([1.0, 2.0]), stopping)
    assert is_exhausted(history([1.0, 2.0, 3.0]), stopping)
    assert not is_exhausted(history([1.0, 2.0, 0.5, 3.0]), stopping)
    assert not is_exhausted(history([1.0, 2.0, 3.0]), None)


def test_an_evaluation_that_gave_no_number_was_made_nevertheless() -> None:
    found = history([2.0, math.nan])
    assert [found.was_evaluated(step) for step in (1, 2, 3)] == [False, True, False]
    assert found.last is not None
    assert found.last.step == 1
    assert history([2.0]).model_copy(update={"evaluated": None}).was_evaluated(1)  # of an older trainer


def test_only_the_last_evaluation_belongs_to_its_step() -> None:
    found = history([2.0, 1.0, 3.0])
    assert [found.loss_at(step) for step in (2, 3, 4)] == [None, 3.0, None]
    assert [found.is_best(step) for step in (1, 2, 3)] == [False, True, False]


@pytest.mark.parametrize(
    ("period", "steps_per_epoch", "due"),
    [
        ({}, 10, []),
        ({"period_seconds": 5}, 10, []),
        ({"period_steps": 4}, 10, [4, 8, 12, 16, 20]),
        ({"period_epochs": 1}, 10, [10, 20]),
        ({"period_epochs": 0.5}, 9, [5, 9, 14, 18]),
        ({"period_epochs": 0.1}, 30, [3, 6, 9, 12, 15, 18]),
        ({"period_epochs": 2}, 7, [14]),
        ({"period_epochs": 0.1}, 2, list(range(1, 21))),  # more often than there are steps
    ],
)
def test_evaluations_are_due_at(period: dict[str, float], steps_per_epoch: int, due: list[int]) -> None:
    evaluation = Evaluation.model_validate(period)
    assert [done for done in range(1, 21) if is_due(evaluation, done, steps_per_epoch)] == due
