"""Patterns decide what is trained and how fast; with real ranks, every stage steps by the same factors."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file

import gang
import tiny
from sft_trainer import engine as engines
from sft_trainer import lora, parameters
from sft_trainer.config import LoRA, ParameterGroup, TrainConfig
from sft_trainer.errors import UserError


@pytest.fixture
def model(tmp_path: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(str(tiny.model(tmp_path / "tiny")))


def wanted(*groups: dict[str, Any]) -> list[ParameterGroup]:
    return [ParameterGroup.model_validate(group) for group in groups]


def trained(model: Any) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_what_is_frozen_is_not_trained_and_the_first_pattern_decides(model: Any) -> None:
    every = trained(model)
    parameters.freeze(
        model,
        wanted(
            {"pattern": "model.layers.1.mlp.*", "learningRateFactor": 1},
            {"pattern": "model.layers.[01].*", "freeze": True},
            {"pattern": "*embed*", "freeze": True},
        ),
    )
    left = {"model.norm.weight", *(name for name in every if name.startswith("model.layers.1.mlp."))}
    assert trained(model) == left


def test_groups_have_a_factor_each_and_decay_for_matrices_only(model: Any) -> None:
    slow = {"pattern": "model.layers.0.*", "learningRateFactor": 0.1}
    found = parameters.groups(model, wanted(slow), 0.01)
    assert [(g["learning_rate_factor"], g["weight_decay"], len(g["params"])) for g in found] == [
        (0.1, 0.01, 7),
        (0.1, 0.0, 2),
        (1.0, 0.01, 8),
        (1.0, 0.0, 3),
    ]
    for decay in (0.01, 0.0):  # a checkpoint of another decay has as many groups
        matrices, vectors = parameters.groups(model, [], decay)
        assert (matrices["weight_decay"], len(matrices["params"])) == (decay, 15)
        assert (vectors["weight_decay"], len(vectors["params"])) == (0.0, 5)


def test_adapters_go_by_the_name_of_their_layer(model: Any) -> None:
    adapted = lora.add(model, LoRA(rank=2, alpha=4, dropout=0.0, target_modules=["q_proj"]))
    fast = wanted({"pattern": "model.layers.*.q_proj.lora_B.weight", "learningRateFactor": 16})
    parameters.freeze(adapted, fast)
    found = parameters.groups(adapted, fast, 0.0)
    assert [(group["learning_rate_factor"], len(group["params"])) for group in found] == [(1.0, 2), (16, 2)]


@pytest.mark.parametrize(
    ("groups", "reason", "words"),
    [
        (
            [{"pattern": "model.embed_token.*", "freeze": True}],
            "UnknownParameters",
            "model.embed_token.* matches no parameter that is trained; the nearest names are model.embed_tokens.weight",
        ),
        (
            [{"pattern": "lm_head.*", "learningRateFactor": 2}],  # tied: it has the embedding's name
            "UnknownParameters",
            "lm_head.* matches no parameter",
        ),
        (
            [{"pattern": "model.*", "learningRateFactor": 2}, {"pattern": "*mlp*", "freeze": True}],
            "UnknownParameters",
            "*mlp* matches only what earlier patterns match",
        ),
        ([{"pattern": "*", "freeze": True}], "NothingToTrain", "freezes every parameter"),
    ],
    ids=["typo", "tied head", "too late", "everything"],
)
def test_a_pattern_without_effect_is_refused(
    groups: list[dict[str, Any]], reason: str, words: str, model: Any
) -> None:
    with pytest.raises(UserError) as caught:
        parameters.freeze(model, wanted(*groups))
    assert caught.value.reason == reason
    assert words in caught.value.message


# --------------------------------------------------------------------------- real ranks

GROUPS = [
    {"pattern": "model.layers.0.*", "freeze": True},
    {"pattern": "model.layers.1.self_attn.*", "learningRateFactor": 0.5},
    {"pattern": "*norm*", "learningRateFactor": 3},
]
CHANGES: dict[str, Any] = {
    "training__maxSteps": 4,
    "training__parameterGroups": GROUPS,
    "checkpoint__periodSteps": 2,
    "evaluation__periodSteps": None,
}


def one_step(world: Any, volume: str, stages: list[int]) -> dict[str, list[float]]:
    """How far the first step of Adam moves a parameter of each group; see the test."""
    from gradient_cells import SETTINGS, batches, parts_of
    from sft_trainer import loop

    engines.prepare("cpu")
    moved = {}
    for stage in stages:
        changes = {
            "deepspeed__zeroStage": stage,
            "training__parameterGroups": GROUPS[1:],
            "training__optimizer": {"type": "AdamW", "betas": [0.9, 0.98], "eps": 1e-10, "weightDecay": 0.0},
        }
        config = TrainConfig.model_validate(gang.Job(Path(volume), changes=SETTINGS | changes).config())
        parts = parts_of(config, world, Path(volume), packed=True)
        names = ("model.norm.weight", "model.layers.1.self_attn.q_proj.weight", "model.embed_tokens.weight")
        before = [_whole(parts.engine, name) for name in names]
        loop.optimizer_step(parts, batches(parts, 0), 1e-3)
        moved[str(stage)] = [
            float((_whole(parts.engine, name) - old).abs().max())
            for name, old in zip(names, before, strict=True)
        ]
        parts.engine.destroy()
    return moved


def _whole(engine: Any, name: str) -> torch.Tensor:
    import deepspeed

    parameter = dict(engine.module.named_parameters())[name]
    with deepspeed.zero.GatheredParameters([parameter]):
        return parameter.detach().clone()


@pytest.mark.processes
def test_every_stage_steps_by_rate_times_factor(tmp_path: Path) -> None:
    """The first step of Adam without decay is the rate itself wherever the gradient is not small."""
    gang.Job(tmp_path / "volume", ranks=2)
    moved = gang.call(one_step, 2, volume=str(tmp_path / "volume"), stages=[0, 1, 2, 3])
    for stage, found in moved.items():
        assert found == pytest.approx([3e-3, 0.5e-3, 1e-3], rel=0.05), stage


@pytest.mark.processes
@pytest.mark.parametrize("stage", [pytest.param(2, marks=pytest.mark.soak), 3])
def test_frozen_parts_are_the_base_models_and_a_resumed_run_is_the_same(stage: int, tmp_path: Path) -> None:
    changes = CHANGES | {"deepspeed__zeroStage": stage}
    whole, resumed = (
        gang.Job(tmp_path / "whole", changes=changes),
        gang.Job(tmp_path / "resumed", changes=changes),
    )
    ended = whole.run()
    assert ended.codes == [0, 0], ended.output
    assert resumed.run().codes == [0, 0]
    next((resumed.folder / "checkpoints" / "step-4").rglob("*model_states.pt")).unlink()
    again = resumed.run(attempt=2)
    assert again.outcomes[0].resumed_from_step == 2  # type: ignore[union-attr]
    assert resumed.curve() == whole.curve()
    base = load_file(whole.volume / "models" / "tiny" / "model.safetensors")
    one, other = (load_file(job.folder / "export" / "model.safetensors") for job in (whole, resumed))
    assert one.keys() == base.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert {name for name in one if torch.equal(one[name], base[name])} == {
        name for name in one if name.startswith("model.layers.0.")
    }
