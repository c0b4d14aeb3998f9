"""What of a spec reaches train.json, field by field."""

from __future__ import annotations

from typing import Any

import pytest

from sft_trainer.config import PrepareResult, TrainConfig
from sftjob_operator.desired.config import prepare_config, train_config
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


@pytest.mark.parametrize("what", ["sequenceParallelSize", "tensorParallelSize"])
def test_ranks_that_share_sequences_or_layers_arrive_and_have_their_batches_together(what):
    found = rendered(
        workers={"nodes": 2, "gpusPerNode": 3},
        deepspeed={what: 3, "microBatchSize": 2},
        training={"globalBatchSize": 8},
    )
    assert found.deepspeed.model_dump(by_alias=True)[what] == 3
    assert (found.training.micro_batch_size, found.training.gradient_accumulation_steps) == (2, 2)


def test_a_schedule_arrives_whole():
    wanted = {"type": "WSD", "warmupSteps": 5, "decaySteps": 30, "minLearningRate": 1e-6}
    found = rendered(training={"scheduler": wanted}).training.scheduler
    assert found.model_dump(by_alias=True) == wanted


@pytest.mark.parametrize(
    ("spec", "export", "keep_best"),
    [
        ({}, "Last", 0),
        ({"training": {"earlyStopping": {}}}, "Best", 1),
        ({"training": {"earlyStopping": {}}, "export": {"checkpoint": "Last"}}, "Last", 0),
        ({"export": {"checkpoint": "Best"}}, "Best", 1),
        ({"export": {"checkpoint": "Best"}, "checkpoint": {"retain": {"best": 3}}}, "Best", 3),
        ({"checkpoint": {"retain": {"best": 2}}}, "Last", 2),
    ],
)
def test_early_stopping_exports_the_best_and_what_is_exported_is_kept(spec, export, keep_best):
    found = rendered(**spec)
    assert (found.export.checkpoint, found.checkpoint.keep_best) == (export, keep_best)


def test_patience_arrives_with_its_defaults():
    assert rendered().training.early_stopping is None
    found = rendered(training={"earlyStopping": {"minDelta": 0.01}}).training.early_stopping
    assert found is not None
    assert found.model_dump(by_alias=True) == {"metric": "eval_loss", "patience": 3, "minDelta": 0.01}


@pytest.mark.parametrize("period", [{"periodSteps": 5}, {"periodSeconds": 60}, {"periodEpochs": 0.5}])
def test_an_evaluation_period_arrives_in_its_unit(period):
    found = rendered(evaluation=period).evaluation
    assert found.model_dump(by_alias=True, exclude_none=True, exclude={"samples"}) == period


@pytest.mark.parametrize(
    ("data", "asked", "samples"),
    [({"eval": {"splitPercent": 5}}, {}, 3), ({}, {}, 0), ({"eval": {"splitPercent": 5}}, {"samples": 0}, 0)],
    ids=["three by default", "none without held-out rows", "none"],
)
def test_prompts_for_the_report_come_from_held_out_rows(data, asked, samples):
    train = [{"path": "a.jsonl"}]
    assert rendered(data={"train": train, **data}, evaluation=asked).evaluation.samples == samples


def test_parameter_groups_arrive_in_their_order_and_belong_to_the_identity():
    groups = [{"pattern": "b*", "freeze": True}, {"pattern": "a*", "learningRateFactor": 0.1}]
    found = rendered(training={"parameterGroups": groups})
    assert [group.pattern for group in found.training.parameter_groups] == ["b*", "a*"]
    assert [group.freeze for group in found.training.parameter_groups] == [True, False]
    assert found.training.parameter_groups[1].learning_rate_factor == 0.1
    assert found.identity not in (
        rendered().identity,
        rendered(training={"parameterGroups": groups[:1]}).identity,
    )


def test_what_is_frozen_reaches_preparation_without_the_rates():
    groups = [
        {"pattern": "b*", "learningRateFactor": 0.1},
        {"pattern": "a*", "freeze": True},
    ]
    found = prepare_config(read_sftjob(sftjob(training={"parameterGroups": groups})))
    assert [(group.pattern, group.freeze) for group in found.freezing] == [("b*", False), ("a*", True)]
    assert found.freezing[0].learning_rate_factor is None
    for training in ({"parameterGroups": groups[:1]}, {"method": "LoRA", "parameterGroups": groups}):
        assert prepare_config(read_sftjob(sftjob(training=training))).freezing == []


def test_master_weights_and_the_optimizer_arrive():
    masters = rendered(training={"masterWeights": "BF16"}, workers={"nodes": 2, "gpusPerNode": 1})
    assert (masters.training.master_weights, masters.training.precision) == ("BF16", "bf16")
    assert masters.deepspeed.zero_stage == 2
    muon = rendered(training={"optimizer": {"type": "Muon", "momentum": 0.9}})
    assert (muon.training.optimizer.type, muon.training.optimizer.momentum) == ("Muon", 0.9)
    assert muon.deepspeed.zero_stage == 0


def test_the_variant_of_lora_arrives_and_belongs_to_the_identity():
    plain, dora = (rendered(training={"method": "LoRA", "lora": lora}) for lora in ({}, {"variant": "DoRA"}))
    assert plain.training.lora is not None
    assert dora.training.lora is not None
    assert (plain.training.lora.variant, dora.training.lora.variant) == ("LoRA", "DoRA")
    assert plain.identity != dora.identity
    unset = rendered(training={"method": "LoRA"})
    assert unset.identity == rendered(training={"method": "LoRA", "lora": {"variant": "LoRA"}}).identity
