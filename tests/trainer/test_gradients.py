"""The gradient of a step is that of the mean over all supervised tokens of the global batch, exactly.

The reference is plain torch in one process: every row alone, one full batch. The steps compared are a full
window and the last partial one; one row without any supervised token fills a micro-batch of its own.
"""

import itertools
from pathlib import Path
from typing import Any

import pytest

import gang
import gradient_cells
from sft_trainer.data.tokenise import Tokens

pytestmark = pytest.mark.processes

STAGES, PACKED, ACCUMULATION = (0, 1, 2, 3), (True, False), (1, 4)


def cells(ranks: int) -> list[dict[str, Any]]:
    """Accumulation 1 takes the global batch of 8 at once, 4 in pieces; the last cell is one pack at a time."""
    combinations = itertools.product(STAGES, ACCUMULATION, PACKED)
    plain = [
        {"stage": stage, "accumulation": n, "micro": 8 // ranks // n, "packed": packed}
        for stage, n, packed in combinations
    ]
    pieces = {"accumulation": 8 // ranks, "micro": 1, "packed": True}
    recomputed = [
        {**pieces, "stage": stage, "checkpointing": what}
        for stage in (2, 3)
        for what in ("Selective", "Full")
    ]
    offloaded = [
        {**pieces, "stage": 1, "optimizer": "CPU"},
        {**pieces, "stage": 2, "optimizer": "CPU"},
        {**pieces, "stage": 3, "optimizer": "CPU", "parameters": "CPU"},
    ]
    return [*plain, *recomputed, *offloaded]


def strategies() -> list[dict[str, Any]]:
    """Ways to spread the same training."""
    offload: list[dict[str, Any]] = [{"stage": stage, "optimizer": "CPU"} for stage in (1, 2, 3)]
    plain = [{"stage": stage} for stage in (1, 2, 3)]
    return [*plain, *offload, {"stage": 3, "optimizer": "CPU", "parameters": "CPU"}]


@pytest.fixture(scope="module")
def volume(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("gradients")
    unsupervised = Tokens(list(range(128)), ())
    gang.write_cache(root / "cache", [unsupervised, *gang.token_rows(40, seed=1)], [])
    gang.Job(root)
    return root


@pytest.fixture(scope="module")
def reference(volume: Path) -> dict[str, list[float]]:
    return gradient_cells.reference(volume)


@pytest.mark.parametrize("ranks", [1, 2])
def test_gradient_norm_and_loss_equal_those_of_one_full_batch(
    ranks: int, volume: Path, reference: dict[str, list[float]]
) -> None:
    results = gang.call(gradient_cells.two_steps, ranks, volume=str(volume), cells=cells(ranks))
    wrong = [
        result
        for result in results
        if result["norms"] != pytest.approx(reference["norms"], rel=1e-4)
        or result["losses"] != pytest.approx(reference["losses"], rel=1e-4)
    ]
    assert len(results) == len(cells(ranks))
    assert not wrong, f"reference {reference}"
    assert any(result["empty"] for result in results), "no micro-batch was without supervised tokens"


@pytest.mark.soak
def test_stages_and_offloading_agree_over_fifty_steps(volume: Path) -> None:
    cells = [{**each, "accumulation": 4, "micro": 1, "packed": True} for each in strategies()]
    first, *others = gang.call(gradient_cells.two_steps, 2, volume=str(volume), cells=cells, repeat=25)
    assert len(first["losses"]) == 50
    assert first["losses"][-1] < first["losses"][0] - 2, "nothing was learned"
    for other in others:
        assert other["losses"] == pytest.approx(first["losses"], rel=1e-5), other
