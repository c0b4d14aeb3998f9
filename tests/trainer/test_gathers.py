"""Under ZeRO-3 the output layer is gathered once a pass, however many chunks its loss is computed in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import gang
import gradient_cells
from sft_trainer import engine as engines
from sft_trainer import head, loop
from sft_trainer.config import TrainConfig
from sft_trainer.distributed import World

CHUNKS = {"one": 10_000, "many": 16}
"""Positions of one."""


def gathers(world: World, volume: str) -> dict[str, dict[str, Any]]:
    """Of the first step with either: all-gathers, chunks, loss and gradient norm at this rank."""
    engines.prepare("cpu")
    found = {}
    for name, positions in CHUNKS.items():
        changes = gradient_cells.SETTINGS | {"deepspeed__zeroStage": 3}
        config = TrainConfig.model_validate(gang.Job(Path(volume), changes=changes).config())
        parts = gradient_cells.parts_of(config, world, Path(volume), packed=True)
        layer = parts.engine.module.get_output_embeddings()
        head._CHUNK_BYTES = {"cpu": positions * layer.weight.ds_numel // layer.in_features * 4}
        mine = gradient_cells.batches(parts, 0)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            own = loop.optimizer_step(parts, mine, 1e-3)
        events = [event.name.lower().replace("_", "") for event in profile.events()]
        found[name] = {
            "gathers": sum("allgather" in event for event in events),
            "chunks": sum(-(-batch.supervised // positions) for batch in mine),
            "loss": own.loss_sum,
            "norm": own.norm,
        }
        parts.engine.destroy()
    return found


@pytest.mark.processes
def test_many_chunks_gather_no_more_than_one(tmp_path: Path) -> None:
    gradient_cells.workspace(tmp_path)
    found = gang.call(gathers, 2, volume=str(tmp_path))
    one, many = found["one"], found["many"]
    assert many["chunks"] > 2 * one["chunks"]
    assert many["gathers"] == one["gathers"] > 0
    assert (many["loss"], many["norm"]) == pytest.approx((one["loss"], one["norm"]), rel=1e-5)
