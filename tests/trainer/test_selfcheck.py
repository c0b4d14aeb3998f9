"""Packing is used only where the model itself keeps documents apart."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from sft_trainer.selfcheck import packing_is_safe


class Rows:
    lengths = np.array([5, 7])

    def row(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        return np.arange(self.lengths[index], dtype=np.int32) + index, np.ones(self.lengths[index], bool)


class Model(torch.nn.Module):
    """Sums what it has seen so far; `apart` makes it begin anew where positions restart."""

    def __init__(self, apart: bool) -> None:
        super().__init__()
        self.apart = apart
        self.table = torch.nn.Parameter(torch.randn(20, 8))

    @property
    def module(self) -> torch.nn.Module:
        return self

    def forward(self, input_ids: torch.Tensor, position_ids: torch.Tensor, **_: Any) -> SimpleNamespace:
        hidden, total = [], torch.zeros(8)
        for token, position in zip(input_ids[0], position_ids[0], strict=True):
            total = self.table[token] + (0 if self.apart and position == 0 else total)
            hidden.append(total)
        return SimpleNamespace(logits=torch.stack(hidden)[None])


class World:
    is_first, device = True, torch.device("cpu")

    def __init__(self, others_wrong: int = 0) -> None:
        self.others_wrong = others_wrong

    def sum(self, values: list[float]) -> list[float]:
        return [values[0] + self.others_wrong]


def check(apart: bool, others_wrong: int = 0) -> bool:
    return packing_is_safe(Model(apart), Rows(), World(others_wrong))  # type: ignore[arg-type]


def test_a_model_that_keeps_documents_apart_is_packed() -> None:
    assert check(apart=True)


def test_a_model_that_mixes_them_is_not_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    assert not check(apart=False)
    assert "packing is turned off" in caplog.text


def test_one_rank_that_sees_a_difference_decides_for_all() -> None:
    assert not check(apart=True, others_wrong=1)
