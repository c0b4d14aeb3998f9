"""fp16: the scale follows the gradients, an overflowing step is repeated, and nothing else notices.

CPUs hardly compute in fp16; they can where DeepSpeed is told that they do.
"""

from __future__ import annotations

import functools
import itertools
import json
import math
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

import gang
import gradient_cells
from sft_trainer import engine as engines
from sft_trainer import loop
from sft_trainer.config import TrainConfig
from sft_trainer.distributed import World
from sft_trainer.errors import UserError
from sft_trainer.lossscale import LossScaler

processes = pytest.mark.processes
OFTEN = {"initial_scale_power": 20, "loss_scale_window": 2}  # overflows at once, and grows again soon


def scaler(scale: float, window: int = 1000) -> LossScaler:
    return LossScaler(
        init_scale=scale, scale_window=window, min_scale=1, delayed_shift=1, consecutive_hysteresis=False
    )


def test_the_scale_doubles_between_steps_and_not_within_one() -> None:
    ours = scaler(8.0, window=1)
    ours.update_scale(False)
    ours.grow()
    ours.update_scale(False)
    assert ours.cur_scale == 8.0, "this step's gradients are still to be divided by it"
    ours.grow()
    assert ours.cur_scale == 16.0


def test_an_overflow_with_the_smallest_scale_is_a_divergence() -> None:
    with pytest.raises(UserError, match="even with the smallest loss scale, 1:") as caught:
        scaler(1.0).update_scale(True)
    assert caught.value.reason == "Diverged"


def pretend_that_cpus_compute_in_fp16() -> None:
    from deepspeed.accelerator import get_accelerator

    get_accelerator().is_fp16_supported = lambda: True


class Skips:
    """A reporter that only counts."""

    def __init__(self) -> None:
        self.scales: list[float] = []

    def skipped(self, step: int, loss_scale: float) -> None:
        self.scales.append(loss_scale)


def six_steps(world: World, volume: str, stages: list[int], tensor: int, optimizer: str) -> dict[str, Any]:
    """Norm, loss and scale of every step, for each stage."""
    pretend_that_cpus_compute_in_fp16()
    engines.prepare("cpu")
    found = {}
    for stage in stages:
        changes = gradient_cells.SETTINGS | {
            "training__precision": "fp16",
            "training__microBatchSize": 2 * tensor,
            "deepspeed__zeroStage": stage,
            "deepspeed__tensorParallelSize": tensor,
            "deepspeed__offloadOptimizer": optimizer,
            # shared layers add up halves of the numbers: they bear a larger scale
            "deepspeed__config": {"fp16": OFTEN | {"initial_scale_power": 20 if tensor == 1 else 26}},
        }
        config = TrainConfig.model_validate(gang.Job(Path(volume), changes=changes).config())
        parts = gradient_cells.parts_of(config, world, Path(volume), packed=True, precision="fp16")
        parts.reporter = skips = Skips()
        steps = []
        for step in (0, 1, 0, 1, 0, 1):
            own = loop.applied_step(parts, step, 1e-3, functools.partial(gradient_cells.batches, parts))
            total, count = world.sum([own.loss_sum, own.weight])
            steps.append((own.norm, total / count, own.loss_scale))
        found[str(stage)] = {"steps": steps, "skips": len(skips.scales)}
        parts.engine.destroy()
    return found


@processes
@pytest.mark.parametrize(
    ("stages", "tensor", "optimizer"),
    [
        ([1, 2, 3], 1, "None"),
        ([1, 2, 3], 1, "CPU"),
        pytest.param([1, 2], 2, "None", id="shared-layers", marks=pytest.mark.soak),
    ],
)
def test_norm_and_loss_are_those_of_fp32_through_overflows_and_growth(
    stages: list[int], tensor: int, optimizer: str, tmp_path: Path
) -> None:
    gang.Job(tmp_path)
    plain = gradient_cells.reference(tmp_path, steps=(0, 1, 0, 1, 0, 1))
    found = gang.call(six_steps, 2, volume=str(tmp_path), stages=stages, tensor=tensor, optimizer=optimizer)
    for stage, made in found.items():
        norms, losses, scales = zip(*made["steps"], strict=True)
        assert norms == pytest.approx(plain["norms"], rel=1e-3), stage
        assert losses == pytest.approx(plain["losses"], rel=1e-4), stage
        assert made["skips"] >= 1, "nothing overflowed"
        ratios = [math.log2(later / earlier) for earlier, later in itertools.pairwise(scales)]
        if tensor == 1:
            assert {-1.0, 1.0} <= set(ratios), f"the scale did not move both ways: {scales}"
        else:  # it falls from 2^26 within the first step; whenever it grew later, it falls within that step
            assert made["skips"] > 26 - math.log2(scales[0]), f"the scale did not grow: {scales}"


def train_in_fp16() -> int:
    pretend_that_cpus_compute_in_fp16()
    return gang.train()


def job(volume: Path) -> gang.Job:
    changes = {
        "training__precision": "fp16",
        "training__optimizer": {"type": "Adam", "betas": [0.9, 0.98], "eps": 1e-6, "weightDecay": 0},
        "training__learningRate": 1e-4,
        "deepspeed__config": {"fp16": OFTEN},
    }
    return gang.Job(volume, changes=changes, rank=train_in_fp16)


def lines(made: gang.Job) -> list[tuple[int, float, float]]:
    read = [json.loads(line) for line in (made.folder / "report" / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line["loss"], line["loss_scale"]) for line in read if "loss_scale" in line]


@processes
def test_adam_in_fp16_is_killed_and_goes_on_with_the_same_loss_and_scale(tmp_path: Path) -> None:
    """betas (0.9, 0.98), eps 1e-6 and rate 1e-4, as the practice that this project implements has them."""
    whole, killed = job(tmp_path / "whole"), job(tmp_path / "killed")
    ended = whole.run()
    assert ended.codes == [0, 0], ended.output
    assert "overflowed in fp16 and is repeated" in ended.output
    with killed.start() as run:
        run.ranks.until("step 5/8")
        run.ranks.send(signal.SIGKILL)
        run.end()
    assert killed.run(attempt=2).codes == [0, 0]
    assert [step for step, _, _ in lines(whole)] == list(range(1, 9))
    assert lines(killed) == lines(whole)


@processes
def test_a_cpu_that_does_not_compute_in_fp16_says_so(tmp_path: Path) -> None:
    made = gang.Job(tmp_path, changes={"training__precision": "fp16"}, ranks=1)
    if torch.ops.mkldnn._is_mkldnn_fp16_supported():
        pytest.skip("this one does")
    ended = made.run()
    assert ended.codes == [71]
    assert ended.outcomes[0] is not None
    assert ended.outcomes[0].reason == "PrecisionUnsupported"
