"""DeepSpeed's configuration: what we decide, what we default, and what the user may add."""

from pathlib import Path
from typing import Any

import pytest

import gang
from sft_trainer.config import TrainConfig
from sft_trainer.engine import deepspeed_config, merged


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


def test_raw_optimizer_and_scheduler_do_not_replace_ours(tmp_path: Path) -> None:
    raw = {"optimizer": {"type": "Lamb"}, "scheduler": {"type": "WarmupLR"}}
    made = settings(tmp_path, deepspeed__config=raw)
    assert "optimizer" not in made
    assert "scheduler" not in made


@pytest.mark.parametrize(("stage", "types"), [(0, None), (1, {"grad_accum_dtype": "fp32"})])
def test_bf16_accumulates_gradients_in_fp32_where_deepspeed_can(
    stage: int, types: Any, tmp_path: Path
) -> None:
    made = settings(tmp_path, "bf16", deepspeed__zeroStage=stage)
    assert made["bf16"] == {"enabled": True}
    assert made.get("data_types") == types


def test_merging_changes_neither_side() -> None:
    base, over = {"a": {"b": 1, "c": 2}}, {"a": {"b": 3}}
    assert merged(base, over) == {"a": {"b": 3, "c": 2}}
    assert base == {"a": {"b": 1, "c": 2}}
