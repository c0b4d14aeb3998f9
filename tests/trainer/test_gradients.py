"""The gradient of a step is that of the weighted mean over all supervised tokens of the global batch, exactly.

The reference is plain torch in one process: every row alone, one full batch. The steps compared are a full
window and the last partial one; rows without any supervised token fill micro-batches of their own.
"""

import functools
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import gang
import gradient_cells

STAGES, ACCUMULATION, PACKED, METHODS = (0, 1, 2, 3), (1, 3, 8), (True, False), ("Full", "LoRA")
RANKS = (1, 2, 4)

Cell = dict[str, Any]
Reference = Callable[[str, float], dict[str, list[float]]]


def cell(stage: int, accumulation: int, packed: bool, method: str) -> Cell:
    return {"stage": stage, "accumulation": accumulation, "packed": packed, "method": method}


EVERY = [cell(*values) for values in itertools.product(STAGES, ACCUMULATION, PACKED, METHODS)]
COVERING = [
    cell(stage, accumulation, PACKED[(stage + index) % 2], METHODS[(stage // 2 + index) % 2])
    for stage in STAGES
    for index, accumulation in enumerate(ACCUMULATION)
]
"""With every pair of values of two dimensions in some cell."""
UNEVEN = [each for each in COVERING if each["accumulation"] == 3]
RECOMPUTED = [{**cell(3, 8, True, "Full"), "checkpointing": what} for what in ("Selective", "Full")]
SMOOTHED = {**cell(2, 1, True, "Full"), "smoothing": 0.1}
VARIANTS = [
    cell(stage, 1, True, variant)
    for stage, variant in itertools.product(STAGES, ("RSLoRA", "DoRA"))
    if (stage, variant) != (3, "DoRA")  # refused: it takes norms of whole weights
]
SECONDARY = {**cell(3, 3, True, "Full"), "secondary": 2}
"""Two ranks hold all weights between them (hpZ)."""
SPREAD: list[Cell] = [
    *({"stage": stage} for stage in (1, 2, 3)),
    *({"stage": stage, "optimizer": "CPU"} for stage in (1, 2, 3)),
    {"stage": 3, "optimizer": "CPU", "parameters": "CPU"},
]
"""Ways to spread the same training."""
SHARED = [
    {**cell(stage, accumulation, True, "Full"), "shared": 2}
    for stage, accumulation in ((0, 3), (2, 3), (3, 8))
]
"""Every two ranks with parts of the same sequences."""
OFFLOADED = [{**cell(0, 8, True, "Full"), **each} for each in SPREAD if "optimizer" in each]


def test_the_covering_cells_hold_every_pair_of_values() -> None:
    def pairs(cells: list[Cell]) -> set[Any]:
        return {pair for each in cells for pair in itertools.combinations(each.items(), 2)}

    assert pairs(COVERING) == pairs(EVERY)
    assert len(COVERING) == 12


@pytest.fixture(scope="module")
def volume(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return gradient_cells.workspace(tmp_path_factory.mktemp("gradients"))


@pytest.fixture(scope="module")
def reference(volume: Path) -> Reference:
    return functools.cache(lambda method, smoothing: gradient_cells.reference(volume, method, smoothing))


def agree(ranks: int, cells: list[Cell], volume: Path, reference: Reference) -> None:
    results = gang.call(gradient_cells.two_steps, ranks, volume=str(volume), cells=cells)
    assert len(results) == len(cells)
    for result in results:
        expected = reference(result["method"], result.get("smoothing", 0.0))
        assert result["norms"] == pytest.approx(expected["norms"], rel=1e-4), result
        assert result["losses"] == pytest.approx(expected["losses"], rel=1e-4), result
        assert not result["compiler"], "a start took a second for torch's compiler, which nothing uses"
    # One rank takes four packs at a time even then, and mixes such rows with others.
    small = [
        result["empty"]
        for result in results
        if result["accumulation"] == 8 and ranks > result.get("shared", 1)
    ]
    assert not small or any(small), "no micro-batch was without supervised tokens"


@pytest.mark.processes
@pytest.mark.parametrize(
    ("ranks", "cells"),
    [
        (1, UNEVEN),
        (2, [*COVERING, *RECOMPUTED, SMOOTHED, *VARIANTS, *OFFLOADED, *SHARED]),
        (4, [*UNEVEN, SECONDARY, SHARED[-1]]),
    ],
    ids=["1-uneven", "2-covering", "4-uneven"],
)
def test_gradient_norm_and_loss_equal_those_of_one_full_batch(
    ranks: int, cells: list[Cell], volume: Path, reference: Reference
) -> None:
    agree(ranks, cells, volume, reference)


@pytest.mark.processes
@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("ranks", RANKS)
def test_so_they_do_in_every_combination(ranks: int, volume: Path, reference: Reference) -> None:
    agree(ranks, EVERY, volume, reference)


@pytest.mark.processes
@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("ranks", [2, 4])
def test_so_they_do_where_ranks_share_sequences(ranks: int, volume: Path, reference: Reference) -> None:
    others = [*RECOMPUTED, SMOOTHED, *VARIANTS, *OFFLOADED]
    cells = [{**each, "shared": 2} for each in (*EVERY, *others) if each["packed"]]
    agree(ranks, cells, volume, reference)


@pytest.mark.processes
@pytest.mark.soak
def test_stages_and_offloading_agree_over_fifty_steps(volume: Path) -> None:
    cells = [{**cell(0, 8, True, "Full"), **each} for each in SPREAD]
    first, *others = gang.call(gradient_cells.two_steps, 2, volume=str(volume), cells=cells, repeat=25)
    assert len(first["losses"]) == 50
    assert first["losses"][-1] < first["losses"][0] - 2, "nothing was learned"
    for other in others:
        assert other["losses"] == pytest.approx(first["losses"], rel=1e-5), other


@pytest.mark.processes
def test_in_bf16_an_offloaded_optimizer_gets_the_same_gradients(volume: Path) -> None:
    bf16 = [{**cell(stage, 8, True, "Full"), "precision": "bf16"} for stage in (2, 3)]
    cells = [{**each, "optimizer": where} for each in bf16 for where in ("None", "CPU")]
    found = gang.call(gradient_cells.two_steps, 2, volume=str(volume), cells=cells, repeat=4)
    for here, there in zip(found[::2], found[1::2], strict=True):
        assert here["losses"][-1] < here["losses"][0], "nothing was learned"
        assert there["norms"][0] == pytest.approx(here["norms"][0], rel=1e-6), there
        # Later a weight may be rounded the other way, as clipping by norms summed in another order has it.
        assert there["norms"] == pytest.approx(here["norms"], rel=2e-3), there
        assert there["losses"] == pytest.approx(here["losses"], rel=2e-4), there
