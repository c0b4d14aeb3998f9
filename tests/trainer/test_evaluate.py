"""The evaluation loss is the weighted mean over all supervised tokens."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from sft_trainer.batches import Plan, one_row_each
from sft_trainer.evaluate import evaluate


class Model(torch.nn.Module):
    """Logits from a table of its own, at the positions asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.table = torch.nn.Parameter(torch.randn(10, 10))

    def forward(self, input_ids: torch.Tensor, logits_to_keep: torch.Tensor, **_: object) -> SimpleNamespace:
        return SimpleNamespace(logits=self.table[input_ids][logits_to_keep])


class Rows:
    data = (([1, 2, 3], [0, 1, 1]), ([4, 5, 6, 7], [0, 0.5, 0, 3]), ([8, 9], [0, 0]))
    lengths = np.array([3, 4, 2])

    def row(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        ids, weights = self.data[index]
        return np.array(ids, np.int32), np.array(weights, np.float32)


def test_weights_count_in_the_sum_and_in_what_it_is_divided_by() -> None:
    model, rows = Model(), Rows()
    plan = Plan(rows.lengths, 8, one_row_each, 2, 1, 1, seed=0, epochs=1, packed=False)
    world = SimpleNamespace(
        rank=0, size=1, device=torch.device("cpu"), sum=lambda values: list(map(float, values))
    )
    found = evaluate(model, rows, plan, world, SimpleNamespace(requested=False))  # type: ignore[arg-type]
    pairs = [(1, 2, 1.0), (2, 3, 1.0), (4, 5, 0.5), (6, 7, 3.0)]  # token, the next, its weight
    losses = -torch.log_softmax(model.table.detach(), dim=-1)
    expected = sum(float(losses[token, following]) * weight for token, following, weight in pairs) / 5.5
    assert found is not None
    assert found.loss == pytest.approx(expected, rel=1e-6)
