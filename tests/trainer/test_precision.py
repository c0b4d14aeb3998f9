"""Which number format a run computes in: one for all ranks, and the checkpoint's where there is one."""

from pathlib import Path
from typing import Any

import pytest

import gang
from sft_trainer import assemble, precision
from sft_trainer.config import TrainConfig
from sft_trainer.distributed import World
from sft_trainer.errors import Crash, TrainerError, UserError
from sft_trainer.precision import multiplies_bf16, resolve


@pytest.mark.parametrize(
    ("flags", "native"), [({"avx2"}, False), ({"avx512f", "avx512_bf16"}, True), ({"amx_bf16"}, True)]
)
def test_auto_precision_asks_for_native_bf16(flags: set[str], native: bool) -> None:
    assert multiplies_bf16(flags) is native


CASES = [
    # wanted, accelerator, what every rank has beside fp32, the checkpoint's -> chosen or reason
    ("Auto", "gpu", "bf16 fp16", None, "bf16"),
    ("Auto", "gpu", "fp16", None, "fp16"),
    ("Auto", "gpu", "", None, "fp32"),
    ("Auto", "cpu", "fp16", None, "fp32"),
    ("Auto", "cpu", "", "bf16", "bf16"),
    ("Auto", "gpu", "bf16 fp16", "fp32", "fp32"),
    ("Auto", "gpu", "bf16 fp16", "fp16", "fp16"),
    ("Auto", "gpu", "fp16", "bf16", "GPUUnsuitable"),
    ("bf16", "gpu", "fp16", "bf16", "GPUUnsuitable"),
    ("bf16", "gpu", "fp16", None, "PrecisionUnsupported"),
    ("bf16", "cpu", "", None, "bf16"),
    ("bf16", "gpu", "bf16 fp16", "bf16", "bf16"),
    ("fp16", "gpu", "bf16 fp16", None, "fp16"),
    ("fp16", "gpu", "bf16", None, "PrecisionUnsupported"),
    ("fp16", "cpu", "bf16", None, "PrecisionUnsupported"),
    ("fp32", "gpu", "bf16 fp16", "bf16", "PrecisionChanged"),
    ("bf16", "gpu", "bf16 fp16", "fp32", "PrecisionChanged"),
]


@pytest.mark.parametrize(("wanted", "accelerator", "formats", "saved", "expected"), CASES)
def test_the_format_is_the_checkpoints_else_the_one_asked_for_else_the_hardwares(
    wanted: Any, accelerator: str, formats: str, saved: Any, expected: str
) -> None:
    def resolved() -> str:
        having: Any = {"fp32", *formats.split()}
        return resolve(wanted, accelerator, formats=having, zero_stage=1, saved=saved)

    if expected in ("bf16", "fp16", "fp32"):
        assert resolved() == expected
        return
    with pytest.raises(TrainerError) as caught:
        resolved()
    assert caught.value.reason == expected
    # Another attempt may find other GPUs, and a checkpoint says that there are some.
    assert isinstance(caught.value, Crash if expected == "GPUUnsuitable" else UserError)


def test_a_gpu_without_bf16_computes_in_fp32_where_stage_0_would_accumulate_in_fp16() -> None:
    assert resolve("Auto", "gpu", formats={"fp16", "fp32"}, zero_stage=0) == "fp32"


def _chosen_where_only_rank_0_has_bf16(world: World, config: dict[str, Any]) -> list[str]:
    flags = {"amx_bf16"} if world.is_first else set[str]()
    precision._cpu_flags = lambda: flags
    return world.gather(assemble.agreed_precision(TrainConfig.model_validate(config), None, world))


@pytest.mark.processes
def test_one_rank_without_bf16_makes_all_ranks_compute_in_fp32(tmp_path: Path) -> None:
    config = gang.Job(tmp_path / "volume").config(training__precision="Auto")
    assert gang.call(_chosen_where_only_rank_0_has_bf16, 2, config=config) == ["fp32", "fp32"]
