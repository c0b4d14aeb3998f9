"""DeepSpeed's configuration: what we decide, what we default, and what the user may add."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from deepspeed.runtime.config import DeepSpeedConfig

import gang
from sft_trainer.config import TrainConfig
from sft_trainer.engine import deepspeed_config, merged, optimizer, with_fitting_bucket
from sft_trainer.errors import UserError
from sftjob_operator.planning import rawkeys


def settings(tmp_path: Path, precision: Any = "fp32", **changes: Any) -> dict[str, Any]:
    return deepspeed_config(TrainConfig.model_validate(gang.Job(tmp_path).config(**changes)), precision)


def test_batch_fields_are_consistent_for_deepspeed(tmp_path: Path) -> None:
    made = settings(tmp_path, training__microBatchSize=3, training__gradientAccumulationSteps=5)
    assert made["train_batch_size"] == 2 * 3 * 5
    assert made["gradient_clipping"] == 1.0


def test_raw_configuration_fills_what_we_default(tmp_path: Path) -> None:
    raw = {
        "zero_optimization": {"reduce_bucket_size": 5, "overlap_comm": "auto"},
        "wall_clock_breakdown": True,
    }
    made = settings(tmp_path, deepspeed__config=raw)
    assert made["zero_optimization"]["reduce_bucket_size"] == 5
    assert made["zero_optimization"]["overlap_comm"] is False
    assert made["zero_optimization"]["stage"] == 2
    assert made["wall_clock_breakdown"] is True


@pytest.mark.parametrize(("asked", "size"), [("auto", 6), (4, 4), (5e8, 6)])
def test_a_gradient_bucket_has_no_more_elements_than_are_trained(
    asked: Any, size: int, tmp_path: Path
) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 2, bias=False), torch.nn.Linear(2, 50))
    model[1].requires_grad_(False)
    made = settings(tmp_path, deepspeed__config={"zero_optimization": {"reduce_bucket_size": asked}})
    fitted = with_fitting_bucket(made, model)
    assert fitted["zero_optimization"] == {**made["zero_optimization"], "reduce_bucket_size": size}
    whole = settings(tmp_path, deepspeed__zeroStage=0)
    assert with_fitting_bucket(whole, model) == whole


def test_deepspeeds_timer_does_not_wait_for_the_gpu_in_every_pass_unless_asked_to(tmp_path: Path) -> None:
    def timer(raw: dict[str, Any]) -> Any:
        read = DeepSpeedConfig(settings(tmp_path, topology__processesPerNode=1, deepspeed__config=raw))
        return read.timers_config

    assert not timer({}).enabled
    assert timer({"timers": {"throughput": {"enabled": True, "synchronized": False}}}).enabled


@pytest.mark.parametrize("section", ["optimizer", "scheduler"])
def test_a_raw_optimizer_or_scheduler_is_refused_and_not_dropped(section: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"set training.{section} instead"):
        settings(tmp_path, deepspeed__config={section: {"type": "Lamb"}})
    assert section not in settings(tmp_path, deepspeed__config={section: "auto"})


@pytest.mark.parametrize(("stage", "types"), [(0, None), (1, {"grad_accum_dtype": "fp32"})])
def test_bf16_accumulates_gradients_in_fp32_where_deepspeed_can(
    stage: int, types: Any, tmp_path: Path
) -> None:
    made = settings(tmp_path, "bf16", deepspeed__zeroStage=stage)
    assert made["bf16"] == {"enabled": True}
    assert made.get("data_types") == types


def test_offloading_is_handed_to_deepspeed_and_pins_no_memory_on_a_cpu(tmp_path: Path) -> None:
    made = settings(
        tmp_path,
        deepspeed__zeroStage=3,
        deepspeed__offloadOptimizer="CPU",
        deepspeed__offloadParameters="CPU",
    )
    assert made["zero_optimization"]["offload_optimizer"] == {"device": "cpu", "pin_memory": False}
    assert made["zero_optimization"]["offload_param"] == {"device": "cpu", "pin_memory": False}
    assert "offload_optimizer" not in settings(tmp_path)["zero_optimization"]


def test_fp16_scales_losses_dynamically_as_the_raw_configuration_says(tmp_path: Path) -> None:
    made = settings(tmp_path, "fp16", deepspeed__config={"fp16": {"loss_scale_window": 100}})
    assert made["fp16"] == {"enabled": True, "hysteresis": 1, "loss_scale_window": 100}
    assert made["bf16"] == {"enabled": False}
    assert made["data_types"] == {"grad_accum_dtype": "fp32"}


@pytest.mark.parametrize("kind", ["Adam", "AdamW"])
def test_weights_decay_as_in_torchs_optimizer_of_that_name_and_only_matrices(
    kind: str, tmp_path: Path
) -> None:
    chosen = {"type": kind, "betas": [0.9, 0.98], "eps": 1e-6, "weightDecay": 0.1}
    job = gang.Job(tmp_path, changes={"training__optimizer": chosen, "training__learningRate": 1e-4})
    model, alone = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    alone.load_state_dict(model.state_dict())
    ours = optimizer(model, TrainConfig.model_validate(job.config()))
    settings = {"lr": 1e-4, "betas": (0.9, 0.98), "eps": 1e-6}
    theirs = [
        getattr(torch.optim, kind)([alone.weight], weight_decay=0.1, **settings),
        getattr(torch.optim, kind)([alone.bias], weight_decay=0.0, **settings),
    ]
    for _ in range(3):
        for network, optimizers in ((model, [ours]), (alone, theirs)):
            network.zero_grad()
            network(torch.arange(6.0).reshape(2, 3)).square().sum().backward()
            for each in optimizers:
                each.step()
    torch.testing.assert_close(model.state_dict(), alone.state_dict(), rtol=1e-6, atol=1e-8)


class Recording(dict[str, Any]):
    """A configuration that remembers which of its keys were looked for."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.asked: set[str] = set()

    def __copy__(self) -> Recording:
        return self

    def __contains__(self, key: object) -> bool:
        self.asked.add(str(key))
        return super().__contains__(key)

    def get(self, key: str, default: Any = None) -> Any:
        self.asked.add(key)
        return super().get(key, default)

    def keys(self) -> Any:
        return self


def test_the_keys_that_are_accepted_are_those_which_this_deepspeed_reads() -> None:
    from deepspeed.runtime import config

    asking = Recording({"train_batch_size": 1})
    config.DeepSpeedConfig(asking)
    read = asking.asked - config._REMOVED_TOP_LEVEL_CONFIG_KEYS.keys()
    accepted = rawkeys.HANDED_ON | rawkeys.ABSORBED
    assert accepted <= read, "nothing is handed on that would be ignored"
    assert read <= accepted | rawkeys.REFUSED.keys(), "a new key needs a decision"


def test_the_keys_of_sections_are_those_of_deepspeeds_models() -> None:
    from deepspeed.runtime.precision_config import DeepSpeedBF16Config, DeepSpeedFP16Config
    from deepspeed.runtime.zero import offload_config as offloading
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    offloads = offloading.DeepSpeedZeroOffloadOptimizerConfig.model_fields.keys()
    offloads |= offloading.DeepSpeedZeroOffloadParamConfig.model_fields.keys()
    assert offloads == rawkeys.OFFLOAD_HANDED_ON | rawkeys.OFFLOAD_REFUSED.keys()

    for model, accepted, refused in (
        (DeepSpeedZeroConfig, rawkeys.ZERO_HANDED_ON, rawkeys.ZERO_REFUSED),
        (DeepSpeedBF16Config, rawkeys.BF16_HANDED_ON, rawkeys.BF16_REFUSED),
        (DeepSpeedFP16Config, rawkeys.FP16_HANDED_ON, rawkeys.FP16_REFUSED),
    ):
        fields = model.model_fields
        aliases = {field.alias for field in fields.values() if field.alias}
        assert fields.keys() | aliases == accepted | refused.keys()


def test_the_keys_of_data_types_are_those_which_this_deepspeed_reads() -> None:
    from deepspeed.runtime import config

    asking = Recording()
    config.DeepSpeedConfig({"train_batch_size": 1, "data_types": asking})
    assert asking.asked == rawkeys.DATA_TYPES_HANDED_ON | rawkeys.DATA_TYPES_REFUSED.keys()


def test_merging_changes_neither_side() -> None:
    base, over = {"a": {"b": 1, "c": 2}}, {"a": {"b": 3}}
    assert merged(base, over) == {"a": {"b": 3, "c": 2}}
    assert base == {"a": {"b": 1, "c": 2}}
