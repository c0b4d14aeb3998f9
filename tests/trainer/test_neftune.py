"""Noise on the embeddings: of the published size for every document's own length, in training only, repeatable."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sft_trainer import neftune

HIDDEN = 64


class Model(torch.nn.Module):
    """Embeddings of zero, so that what comes out is the noise."""

    def __init__(self) -> None:
        super().__init__()
        self.table = torch.nn.Embedding.from_pretrained(torch.zeros(10, HIDDEN))

    def get_input_embeddings(self) -> torch.nn.Module:
        return self.table

    def forward(self, input_ids: torch.Tensor, **_: Any) -> SimpleNamespace:
        return SimpleNamespace(noise=self.table(input_ids))


def noise(model: Model, **inputs: Any) -> torch.Tensor:
    drawn: torch.Tensor = model(input_ids=torch.zeros(2, 100, dtype=torch.int64), **inputs).noise
    return drawn


def bounds(drawn: torch.Tensor) -> list[float]:
    """The largest value of every position, over the row: uniform noise comes close to its bound."""
    return [float(part.abs().max()) * HIDDEN**0.5 for part in drawn]


@pytest.mark.parametrize(
    "inputs",
    [
        {"position_ids": torch.stack([torch.arange(100), torch.cat([torch.arange(25), torch.arange(75)])])},
        {"attention_mask": torch.stack([torch.ones(100), torch.arange(100) < 25]).long()},
    ],
    ids=["packed", "padded"],
)
def test_noise_is_uniform_up_to_alpha_over_the_root_of_length_times_width(inputs: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = Model().train()
    neftune.install(model, 5.0)
    drawn = noise(model, **inputs)
    whole, short = bounds(torch.stack([drawn[0, :25], drawn[1, :25]]))
    assert whole == pytest.approx(5 / 100**0.5, rel=0.02)
    assert short == pytest.approx(5 / 25**0.5, rel=0.02)
    assert float(drawn.mean()) == pytest.approx(0, abs=2e-3)
    if "position_ids" in inputs:
        assert bounds(drawn[1:, 25:]) == [pytest.approx(5 / 75**0.5, rel=0.02)]


def test_there_is_none_in_evaluation() -> None:
    model = Model()
    neftune.install(model, 5.0)
    assert noise(model.train()).any()
    assert not noise(model.eval()).any()


def test_it_comes_from_the_generator_that_checkpoints_keep() -> None:
    model = Model().train()
    neftune.install(model, 5.0)
    state = torch.get_rng_state()
    first, second = noise(model), noise(model)
    torch.set_rng_state(state)
    assert torch.equal(noise(model), first)
    assert not torch.equal(first, second)
