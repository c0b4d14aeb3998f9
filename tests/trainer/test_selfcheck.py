"""Packing, and an attention, are used only where documents stay apart with them."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import packed_models
from sft_trainer import attention, flash
from sft_trainer.errors import UserError
from sft_trainer.flashkernels import Found
from sft_trainer.selfcheck import Chosen, use_attention


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


class Engine(torch.nn.Module):
    """Hands everything on to the model, as DeepSpeed's does."""

    def __init__(self, kind: str = "llama") -> None:
        super().__init__()
        self.module = packed_models.network(kind)

    def forward(self, **inputs: Any) -> Any:
        return self.module(**inputs)


class World:
    is_first, device = True, torch.device("cpu")

    def __init__(self, others_wrong: int = 0) -> None:
        self.others_wrong = others_wrong

    def sum(self, values: list[float]) -> list[float]:
        return [values[0] + self.others_wrong]


def sdpa_all_at_once(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, edges: torch.Tensor, longest: int, **_: Any
) -> torch.Tensor:
    """A kernel of FlashAttention's kind, made of SDPA under one mask."""
    document = torch.bucketize(torch.arange(len(query)), edges[1:-1], right=True)
    seen = (document[:, None] == document).tril()
    heads = (tensor.transpose(0, 1)[None] for tensor in (query, key, value))
    out = torch.nn.functional.scaled_dot_product_attention(*heads, seen, enable_gqa=True)
    return out[0].transpose(0, 1)


def finds(kernel: Any) -> Any:
    return lambda model, dtype, device: Found(kernel, "made for the test")


def mixes(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, edges: Any, *rest: Any, **_: Any
) -> Any:
    return sdpa_all_at_once(query, key, value, edges[[0, -1]], len(query))


def fails(*_: Any, **__: Any) -> Any:
    raise RuntimeError("no kernel image")


def check(apart: bool, others_wrong: int = 0) -> bool:
    return use_attention(Model(apart), Rows(), World(others_wrong)).packed  # type: ignore[arg-type]


def test_a_model_that_keeps_documents_apart_is_packed() -> None:
    assert check(apart=True)


def test_a_model_that_mixes_them_is_not_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    assert not check(apart=False)
    assert "packing is turned off" in caplog.text


def test_one_rank_that_sees_a_difference_decides_for_all() -> None:
    assert not check(apart=True, others_wrong=1)


@pytest.mark.parametrize("pack", [True, False], ids=["packed", "padded"])
def test_flash_attention_comes_first_where_there_is_a_kernel(
    pack: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    engine = Engine()
    found = use_attention(engine, Rows(), World(), pack=pack, find=finds(sdpa_all_at_once))  # type: ignore[arg-type]
    assert found == Chosen("FlashAttention", pack)
    assert attention.implementation(engine.module) == flash.AT_ONCE
    assert "FlashAttention (made for the test) passed" in caplog.text


@pytest.mark.parametrize("wrong", [mixes, fails, None], ids=["mixes documents", "fails", "is not there"])
@pytest.mark.parametrize("pack", [True, False], ids=["packed", "padded"])
def test_one_that_is_not_right_gives_way_to_sdpa(wrong: Any, pack: bool) -> None:
    engine = Engine()
    found = use_attention(engine, Rows(), World(), pack=pack, find=finds(wrong))  # type: ignore[arg-type]
    assert found == Chosen("SDPA", pack)
    assert attention.implementation(engine.module) == attention.PER_DOCUMENT


@pytest.mark.parametrize("wrong", [mixes, fails, None], ids=["mixes documents", "fails", "is not there"])
def test_asked_for_it_ends_the_job_with_the_fix(wrong: Any) -> None:
    with pytest.raises(
        UserError, match=r"model\.attention is FlashAttention, but .*set it to SDPA"
    ) as refused:
        use_attention(Engine(), Rows(), World(), "FlashAttention", find=finds(wrong))  # type: ignore[arg-type]
    assert refused.value.reason == "AttentionUnsupported"


def test_what_is_asked_for_is_what_is_used() -> None:
    for wanted, implementation in (("SDPA", attention.PER_DOCUMENT), ("Eager", "eager")):
        engine = Engine()
        if wanted == "Eager":
            attention.use(engine.module, "eager")  # as model.load does
        found = use_attention(engine, Rows(), World(), wanted, find=finds(sdpa_all_at_once))  # type: ignore[arg-type]
        assert found == Chosen(wanted, True)  # type: ignore[arg-type]
        assert attention.implementation(engine.module) == implementation


def test_an_architecture_without_position_ids_is_padded_and_keeps_its_attention() -> None:
    engine = Engine("bloom")
    found = use_attention(engine, Rows(), World())  # type: ignore[arg-type]
    assert found == Chosen("Eager", False)
    assert attention.implementation(engine.module) == "eager"
