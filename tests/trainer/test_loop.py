"""When the loop evaluates, saves and ends: steps take ten seconds of a made-up clock, losses are given."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import gang
from sft_trainer import loop
from sft_trainer.batches import Plan, one_row_each
from sft_trainer.config import TrainConfig
from sft_trainer.errors import Interrupted
from sft_trainer.evaluate import Evaluation
from sft_trainer.history import History, after

STOPPING = {"metric": "eval_loss", "patience": 2, "minDelta": 0.0}
BEST = {"training__earlyStopping": STOPPING, "checkpoint__keepBest": 1, "evaluation__periodSteps": 1}


class Room:
    """Eight steps, four to an epoch. What happened is in `evaluated` and `saved`, by step."""

    def __init__(self, volume: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.job = gang.Job(volume, ranks=1, changes={"checkpoint__periodSteps": None})
        self.seconds = 0.0
        self.losses: Iterator[float] = iter(())
        self.stop = SimpleNamespace(requested=False)
        self.evaluated: list[int] = []
        self.saved: list[int] = []
        self.step = 0
        monkeypatch.setattr(loop.time, "monotonic", lambda: self.seconds)
        monkeypatch.setattr(loop, "optimizer_step", self._step)
        monkeypatch.setattr(loop, "evaluate", self._evaluate)
        monkeypatch.setattr(loop, "save_checkpoint", self._save)

    def train(
        self,
        losses: list[float],
        *,
        start: int = 0,
        history: History | None = None,
        since_evaluation: float = 0.0,
        stop_at: int | None = None,
        **changes: Any,
    ) -> int:
        """The step at which it ended; a signal comes in step `stop_at`."""
        changes = {"evaluation__periodSteps": None, **changes}
        self.losses, self.step, self.stop_at = iter(losses), start, stop_at
        parts: Any = SimpleNamespace(
            config=TrainConfig.model_validate(self.job.config(**changes)),
            world=SimpleNamespace(
                is_first=True, rank=0, size=1, sum=lambda values: [float(v) for v in values]
            ),
            plan=Plan(np.full(4, 8), 8, one_row_each, 1, 1, 1, seed=1, max_steps=8),
            reporter=SimpleNamespace(step=_nothing, phase=_nothing, evaluated=_nothing),
            engine=None,
            held_out=((), ()),
            stop=self.stop,
            history=history or History(),
            looked_at=self.seconds - since_evaluation,
            store=SimpleNamespace(fence=SimpleNamespace(run_id="run")),
            precision="fp32",
        )
        batches: Any = lambda step: [step]  # noqa: E731 - all that _step needs of a batch
        return loop.train(parts, start, 1.0, batches).step

    def _step(self, parts: object, mine: list[int], rate: float) -> loop.OwnStep:
        self.seconds += 10
        self.step = mine[0] + 1
        self.stop.requested = self.step == self.stop_at
        return loop.OwnStep(loss_sum=1.0, weight=1.0, supervised=1, norm=1.0)

    def _save(self, parts: Any, step: int, loss: float | None) -> None:
        self.saved.append(step)
        self.state = loop.trainer_state(parts, step, loss)

    def _evaluate(self, *_: object) -> Evaluation:
        self.evaluated.append(self.step)
        return Evaluation(next(self.losses, 0.0), 0.0)


def _nothing(*_: object) -> None:
    pass


@pytest.fixture
def room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Room:
    return Room(tmp_path / "volume", monkeypatch)


@pytest.mark.parametrize(
    ("period", "evaluated"),
    [
        ({}, []),
        ({"evaluation__periodSteps": 3}, [3, 6]),
        ({"evaluation__periodSeconds": 25}, [3, 6]),
        ({"evaluation__periodSeconds": 10}, [1, 2, 3, 4, 5, 6, 7, 8]),
        ({"evaluation__periodEpochs": 1}, [4, 8]),
        ({"evaluation__periodEpochs": 0.5}, [2, 4, 6, 8]),
    ],
)
def test_evaluations_come_by_steps_time_or_epochs(
    period: dict[str, float], evaluated: list[int], room: Room
) -> None:
    assert room.train([], **period) == 8
    assert room.evaluated == evaluated
    assert room.saved == [8]


def test_each_best_evaluation_is_saved_and_patience_ends_the_training_with_a_checkpoint(room: Room) -> None:
    assert room.train([3.0, 2.0, 2.5, 1.0, 1.5, 1.2], **BEST) == 6
    assert room.saved == [1, 2, 4, 6]


def test_without_a_best_to_keep_only_the_end_is_saved(room: Room) -> None:
    assert room.train([3.0, 2.0, 2.5, 2.5], **{**BEST, "checkpoint__keepBest": 0}) == 4
    assert room.saved == [4]


def test_a_training_whose_patience_was_at_an_end_takes_no_step_and_one_with_more_patience_goes_on(
    room: Room,
) -> None:
    tired = after(after(after(History(), 1, 1.0, 0.0), 2, 2.0, 0.0), 3, 2.0, 0.0)
    assert room.train([], start=3, history=tired, **BEST) == 3
    patient = {**BEST, "training__earlyStopping": {**STOPPING, "patience": 4}}
    assert room.train([2.0, 2.0], start=3, history=tired, **patient) == 5


def test_an_evaluation_that_a_signal_kept_from_happening_is_made_up_for(room: Room) -> None:
    known = after(History(), 1, 3.0, 0.0)
    with pytest.raises(Interrupted):
        room.train([], start=1, history=known, stop_at=2, **BEST)
    assert (room.evaluated, room.saved) == ([], [2])
    room.train([2.0, 2.5, 2.5], start=2, history=known, **BEST)
    assert room.evaluated == [2, 3, 4]
    assert room.saved == [2, 2, 4]


def test_seconds_between_evaluations_are_counted_over_a_restart(room: Room) -> None:
    with pytest.raises(Interrupted):
        room.train([], stop_at=2, evaluation__periodSeconds=25)
    assert room.state.seconds_since_evaluation == 20
    room.seconds += 1000  # nobody trains
    room.train([], start=2, since_evaluation=20, evaluation__periodSeconds=25)
    assert room.evaluated == [3, 6]


def test_an_evaluation_that_gave_no_number_is_not_made_again_by_the_next_run(room: Room) -> None:
    known = after(after(History(), 1, 3.0, 0.0), 2, math.nan, 0.0)
    room.train([2.0, 2.5, 2.5], start=2, history=known, **BEST)
    assert room.evaluated == [3, 4, 5]
