"""The gradient of a step is that of the weighted mean over all supervised tokens of the global batch, exactly.

The reference is plain torch in one process: every row alone, one full batch. The steps compared are a full
window and the last partial one; one row without any supervised token fills a micro-batch of its own.
"""

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
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
    single = {"stage": 3, "accumulation": 8 // ranks, "micro": 1, "packed": True, "checkpointing": "Full"}
    return [*plain, single]


@pytest.fixture(scope="module")
def volume(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("gradients")
    unsupervised = Tokens(np.arange(128, dtype=np.int32), ())
    gang.write_cache(root / "cache", [unsupervised, *_weighted(gang.token_rows(40, seed=1))], [])
    gang.Job(root)
    return root


def _weighted(rows: list[Tokens]) -> list[Tokens]:
    """Every third row counts more or less than the others."""
    chosen = [row.spans and index % 3 == 0 for index, row in enumerate(rows)]
    return [
        replace(row, weights=(0.25 + index % 4,)) if weigh else row
        for index, (row, weigh) in enumerate(zip(rows, chosen, strict=True))
    ]


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
