"""The learning rate is a function of the step and nothing else."""

import pytest

from sft_trainer.config import Scheduler
from sft_trainer.schedule import learning_rate


def scheduler(kind: str, warmup: int = 0, low: float = 0.0) -> Scheduler:
    return Scheduler(type=kind, warmup_steps=warmup, min_learning_rate=low)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["Cosine", "Linear", "Constant", "WSD"])
def test_warm_up_rises_evenly_to_the_peak(kind: str) -> None:
    rates = [learning_rate(step, 20, 1.0, scheduler(kind, warmup=4)) for step in range(5)]
    assert rates == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0])


@pytest.mark.parametrize(
    ("kind", "middle", "end"),
    [("Cosine", 0.55, 0.1), ("Linear", 0.55, 0.1), ("Constant", 1.0, 1.0)],
)
def test_after_the_warm_up_the_rate_decays_to_its_minimum(kind: str, middle: float, end: float) -> None:
    chosen = scheduler(kind, warmup=10, low=0.1)
    assert learning_rate(60, 110, 1.0, chosen) == pytest.approx(middle)
    assert learning_rate(110, 110, 1.0, chosen) == pytest.approx(end)


def test_a_quarter_of_a_cosine_is_where_a_cosine_is() -> None:
    assert learning_rate(25, 100, 1.0, scheduler("Cosine")) == pytest.approx(0.8535534)


@pytest.mark.parametrize(
    ("decay", "total", "warmup", "expected"),
    [
        (4, 10, 2, [0.5, 1, 1, 1, 1, 1, 1, 0.55, 1 - 0.9 * 0.5**0.5, 1 - 0.9 * 0.75**0.5, 0.1]),
        (None, 10, 0, [1] * 9 + [1 - 0.9 * 0.5**0.5, 0.1]),  # a fifth
        (None, 1, 0, [1, 0.1]),
        (8, 4, 2, [0.5, 1, 1, 1 - 0.9 * 0.5**0.5, 0.1]),  # the warm-up goes first
    ],
    ids=["four steps", "a fifth", "one step", "longer than what the warm-up leaves"],
)
def test_wsd_stays_at_the_peak_and_decays_by_one_minus_sqrt_at_the_end(
    decay: int | None, total: int, warmup: int, expected: list[float]
) -> None:
    chosen = Scheduler(type="WSD", warmup_steps=warmup, decay_steps=decay, min_learning_rate=0.1)
    rates = [learning_rate(step, total, 1.0, chosen) for step in range(total + 1)]
    assert rates == pytest.approx(expected)


def test_a_warm_up_longer_than_the_training_is_no_error() -> None:
    assert learning_rate(2, 3, 1.0, scheduler("Cosine", warmup=10)) == pytest.approx(0.3)
