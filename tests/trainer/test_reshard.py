"""Which elements of which parameter lie where in the files of a gang."""

import math
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from sft_trainer.checkpoint.reshard import MOMENTS, WEIGHTS, Fragment, extract, read
from sft_trainer.checkpoint.state import seed_random

SHAPES = {"a": torch.Size([5]), "b": torch.Size([2, 3]), "c": torch.Size([1])}
VALUES = {name: torch.arange(shape.numel()) + 100.0 * i for i, (name, shape) in enumerate(SHAPES.items())}
SCALES = {WEIGHTS: 1.0, MOMENTS[0]: 2.0, MOMENTS[1]: 3.0}


def save(folder: Path, rank: int, state: dict) -> None:
    torch.save({"optimizer_state_dict": state}, folder / f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt")


def moments(flat: torch.Tensor) -> dict[str, torch.Tensor]:
    return {"step": torch.tensor(7.0), **{key: SCALES[key] * flat for key in MOMENTS}}


def save_stage_2(folder: Path, ranks: int) -> None:
    """Two parameter groups, [a, b] and [c], each end to end and cut into equal parts."""
    for rank in range(ranks):
        weights, mappings, states = [], [], {}
        for index, names in enumerate((("a", "b"), ("c",))):
            flat = torch.cat([VALUES[name] for name in names])
            part = math.ceil(len(flat) / ranks)
            flat = torch.cat([flat, torch.zeros(part * ranks - len(flat))])
            mine, mapping, offset = flat[rank * part : (rank + 1) * part], {}, 0
            for name in names:
                first = max(offset, rank * part)
                last = min(offset + len(VALUES[name]), (rank + 1) * part)
                if first < last:
                    mapping[name] = SimpleNamespace(start=first - rank * part, numel=last - first)
                offset += len(VALUES[name])
            weights.append(mine)
            mappings.append(mapping)
            states[index] = moments(mine)
        groups = [{"params": [0]}, {"params": [1]}]
        base = {"state": states, "param_groups": groups}
        slices = {"single_partition_of_fp32_groups": weights, "param_slice_mappings": mappings}
        save(folder, rank, {**slices, "base_optimizer_state": base})


def save_stage_3(folder: Path, ranks: int) -> None:
    """Two sub-groups, every parameter cut into equal parts."""
    groups = [{"a": SHAPES["a"], "b": SHAPES["b"]}, {"c": SHAPES["c"]}]
    torch.save({"param_shapes": groups}, folder / "zero_pp_rank_0_mp_rank_00_model_states.pt")
    for rank in range(ranks):
        flats = []
        for group in groups:
            parts = []
            for name in group:
                part = math.ceil(len(VALUES[name]) / ranks)
                padded = torch.cat([VALUES[name], torch.zeros(part * ranks - len(VALUES[name]))])
                parts.append(padded[rank * part : (rank + 1) * part])
            flats.append(torch.cat(parts))
        state = {"state": {index: moments(flat) for index, flat in enumerate(flats)}}
        save(folder, rank, {"fp32_flat_groups": flats, "optimizer_state_dict": state})


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 8])
@pytest.mark.parametrize(("stage", "write"), [(2, save_stage_2), (3, save_stage_3)], ids=["2", "3"])
def test_every_parameter_is_put_together_again_from_any_number_of_ranks(stage, write, ranks, tmp_path):
    write(tmp_path, ranks)
    saved = read(tmp_path, ranks, stage)
    assert saved.step == 7
    for name, values in VALUES.items():
        for key, scale in SCALES.items():
            assert extract(saved.fragments[name], key, 0, len(values)).tolist() == (scale * values).tolist()


def pieces(*lengths: int) -> Sequence[Fragment]:
    """Elements 0, 1, 2, ... of a parameter in fragments of these lengths, each 3 elements into its flat tensor."""
    starts = np.cumsum([0, *lengths])
    return [
        Fragment({WEIGHTS: torch.cat([torch.full((3,), -1.0), torch.arange(start, start + n).float()])}, 3, n)
        for start, n in zip(starts, lengths, strict=False)
    ]


@pytest.mark.parametrize(
    ("start", "numel", "found"),
    [
        (0, 3, [0, 1, 2]),
        (2, 5, [2, 3, 4, 5, 6]),
        (3, 1, [3]),
        (7, 4, [7, 8, 0, 0]),
        (9, 2, [0, 0]),
        (4, 0, []),
    ],
)
def test_a_range_is_copied_across_fragments_and_padded_behind_the_end(start, numel, found):
    assert extract(pieces(3, 0, 5, 1), WEIGHTS, start, numel).tolist() == found


def test_new_ranks_draw_their_own_numbers_the_same_ones_each_time():
    def drawn(*seed: int) -> tuple[float, float]:
        seed_random(*seed)
        return float(torch.rand(())), float(np.random.random())

    assert drawn(7, 3, 0) == drawn(7, 3, 0)
    assert len({drawn(7, 3, 0), drawn(7, 3, 1), drawn(7, 4, 0), drawn(8, 3, 0)}) == 4
