"""What of a spec reaches train.json, field by field."""

from __future__ import annotations

from typing import Any

import pytest

from sft_trainer.config import PrepareResult, TrainConfig
from sftjob_operator.desired.config import train_config
from sftjob_operator.planning.hardware import Hardware
from sftjob_operator.planning.plan import Plan, plan
from sftjob_operator.policy.accept import read_sftjob
from worlds import FACTS, sftjob


def rendered(**spec: Any) -> TrainConfig:
    job, facts = read_sftjob(sftjob(**spec)), PrepareResult.model_validate(FACTS)
    chosen = plan(job.spec, facts.model, Hardware())
    assert isinstance(chosen, Plan)
    return train_config(job, chosen, facts, 1)


@pytest.mark.parametrize(
    ("training", "length"),
    [
        ({}, (1, None, None)),
        ({"epochs": 3}, (3, None, None)),
        ({"maxSteps": 40}, (None, 40, None)),
        ({"maxTokens": 10**9}, (None, None, 10**9)),
    ],
)
def test_the_length_of_a_training_is_given_in_one_way(training, length):
    found = rendered(training=training).training
    assert (found.epochs, found.max_steps, found.max_tokens) == length


def test_a_schedule_arrives_whole():
    wanted = {"type": "WSD", "warmupSteps": 5, "decaySteps": 30, "minLearningRate": 1e-6}
    found = rendered(training={"scheduler": wanted}).training.scheduler
    assert found.model_dump(by_alias=True) == wanted
