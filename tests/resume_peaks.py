"""What a rank holds while it resumes at its own size, measured in the rank: for tests/trainer/test_resume.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

import gang
import gradient_cells
from loading_peaks import Peak
from sft_trainer import engine as engines
from sft_trainer import loop
from sft_trainer.checkpoint import as_saved
from sft_trainer.checkpoint.commit import ENGINE_TAG
from sft_trainer.checkpoint.reshard import WEIGHTS
from sft_trainer.config import TrainConfig


def resumed(world: Any, volume: str, model: str, cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each cell the most memory that loading took, and whether the state is the saved one, and in its files."""
    engines.prepare("cpu")
    return [_resumed(world, Path(volume), model, index, cell) for index, cell in enumerate(cells)]


def _resumed(world: Any, volume: Path, model: str, index: int, cell: dict[str, Any]) -> dict[str, Any]:
    changes = gradient_cells.SETTINGS | {"model__directory": model, "training__microBatchSize": 8, **cell}
    config = TrainConfig.model_validate(gang.Job(volume, ranks=world.size, changes=changes).config())
    precision = cell.get("training__precision", "fp32")
    folder = volume / f"checkpoint-{index}"
    parts = gradient_cells.parts_of(config, world, volume, packed=True, precision=precision)
    loop.optimizer_step(parts, gradient_cells.batches(parts, 0), 1e-3)
    parts.engine.save_checkpoint(str(folder), tag=ENGINE_TAG, save_latest=False)
    saved = _state(parts.engine)
    parts.engine.destroy()
    parts = gradient_cells.parts_of(config, world, volume, packed=True, precision=precision)
    with Peak() as peak:
        as_saved.load(parts.engine, folder)
    loaded = _state(parts.engine)
    equal = saved.keys() == loaded.keys() and all(torch.equal(saved[key], loaded[key]) for key in saved)
    mapped = str(folder) in Path("/proc/self/maps").read_text()
    parts.engine.destroy()
    return {
        "peaks": world.gather(peak.bytes),
        "equal": all(world.gather(equal)),
        "mapped": any(world.gather(mapped)),
        "held": sum(tensor.nbytes for (_, key), tensor in loaded.items() if key != WEIGHTS),
    }


def _state(engine: Any) -> dict[tuple[int, str], torch.Tensor]:
    """Copies of the weights that the optimizer updates, and of what it keeps for each."""
    inner = getattr(engine.optimizer, "optimizer", engine.optimizer)
    found = {}
    for index, (weights, state) in enumerate(inner.state.items()):
        for key, value in {WEIGHTS: weights.detach(), **state}.items():
            found[index, key] = value.clone()
    return found
