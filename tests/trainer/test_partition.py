"""A model that was loaded whole is cut into ZeRO-3's partitions: what is no parameter comes along."""

from __future__ import annotations

from typing import Any

import deepspeed
import pytest
import torch
from torch import nn

from sft_trainer.partition import partition


class Norm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.register_buffer("bias", torch.ones(3))
        self.register_buffer("frequencies", torch.ones(4), persistent=False)


def test_buffers_are_where_the_parameters_are(monkeypatch: pytest.MonkeyPatch) -> None:
    device, moved = object(), []

    class Init:
        """DeepSpeed's, on a device that no machine has."""

        local_device = device

        def __init__(self, **_: Any) -> None:
            pass

        def _convert_to_deepspeed_param(self, parameter: Any) -> None:
            parameter.partition = lambda: None

    def to(tensor: torch.Tensor, *where: Any) -> torch.Tensor:
        moved.append((tensor.shape, *where))
        return tensor

    monkeypatch.setattr(deepspeed.zero, "Init", Init)
    monkeypatch.setattr(torch.Tensor, "to", to)
    partition(Norm(), {}, torch.bfloat16)
    assert moved == [
        ((2, 2), device, torch.bfloat16),
        ((2,), device, torch.bfloat16),
        ((3,), device),  # in its own type
        ((4,), device),
    ]
