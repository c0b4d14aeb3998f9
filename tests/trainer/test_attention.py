"""Attention document by document: logits and gradients are those of every document alone."""

from pathlib import Path
from typing import Any

import pytest
import torch

from packed_models import LENGTHS, MODELS, gradients, network, packs
from sft_trainer import attention
from sft_trainer.errors import UserError
from sft_trainer.model import load


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("checkpointing", [False, True], ids=["stored", "recomputed"])
def test_a_pack_computes_what_its_documents_compute_alone(kind: str, checkpointing: bool) -> None:
    model, (ids, positions) = network(kind).train(), packs()
    alone = torch.cat(
        [
            model(input_ids=document[None], use_cache=False).logits[0]
            for row, lengths in zip(ids, LENGTHS, strict=True)
            for document in row.split(lengths)
        ]
    )
    expected = gradients(model, alone)
    assert attention.use_per_document(model)
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    packed = model(input_ids=ids, position_ids=positions, use_cache=False).logits.reshape(alone.shape)
    torch.testing.assert_close(packed, alone, rtol=1e-4, atol=1e-5)
    for ours, theirs in zip(gradients(model, packed), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


def test_no_call_is_longer_than_a_document(monkeypatch: pytest.MonkeyPatch) -> None:
    model, (ids, positions) = network("llama"), packs()
    assert attention.use_per_document(model)
    seen, original = [], torch.nn.functional.scaled_dot_product_attention

    def watched(query: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        seen.append(query.shape[2])
        return original(query, *args, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", watched)
    model(input_ids=ids, position_ids=positions, use_cache=False)
    assert seen == 2 * [length for row in LENGTHS for length in row]


@pytest.mark.parametrize("block", [1, 10, 512])
def test_a_window_is_cut_into_blocks_that_leave_nothing_out(
    block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "_SMALLEST_BLOCK", block)
    model, (ids, positions) = network("mistral"), packs()
    expected = model(input_ids=ids, position_ids=positions, use_cache=False).logits
    expected_gradients = gradients(model, expected)
    assert attention.use_per_document(model)
    found = model(input_ids=ids, position_ids=positions, use_cache=False).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    for ours, theirs in zip(gradients(model, found), expected_gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_the_mask_of_a_long_document_with_a_window_is_no_square() -> None:
    long = torch.empty(1, 1, 100_000, 1)
    masks = [mask for *_, mask in attention._blocks(long, long, long, 1024)]
    assert len(masks) == 98
    assert max(mask.numel() for mask in masks if mask is not None) <= 1024 * 2048


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("kind", MODELS)
def test_padded_rows_compute_what_they_compute_under_a_mask(kind: str, side: str) -> None:
    model, (ids, _) = network(kind).train(), packs()
    mask = torch.ones_like(ids)
    mask[0, 30:] = 0
    mask = mask if side == "right" else mask.flip(1)
    real, inputs = mask.bool(), {"input_ids": ids, "attention_mask": mask, "use_cache": False}
    expected = model(**inputs).logits[real]
    wanted = gradients(model, expected)
    assert attention.use_per_document(model)
    found = model(**inputs).logits[real]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    for ours, theirs in zip(gradients(model, found), wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


def test_an_attention_that_does_more_is_left_alone() -> None:
    eager = network("llama")
    eager.set_attn_implementation("eager")
    assert not attention.use_per_document(eager)
    chunked = network("llama")
    chunked.config.layer_types = ["chunked_attention", "full_attention"]
    assert not attention.use_per_document(chunked)


def test_a_new_document_begins_where_positions_do_not_go_on() -> None:
    assert attention.document_lengths(torch.tensor([0, 1, 2, 0, 0, 1])) == [3, 1, 2]
    assert attention.document_lengths(torch.tensor([4, 5, 6])) == [3]


def test_a_new_document_begins_where_padding_does() -> None:
    assert attention.document_lengths(torch.tensor([True, True, False])) == [2, 1]
    assert attention.document_lengths(torch.tensor([True, True])) == [2]


def test_the_attention_asked_for_is_loaded_or_refused(tmp_path: Path) -> None:
    for kind in ("llama", "bloom"):
        network(kind).save_pretrained(tmp_path / kind)

    def loaded(kind: str, wanted: Any) -> str | None:
        common: Any = {"adapters": None, "activation_checkpointing": "None", "zero3": None, "seed": 0}
        found = load(tmp_path / kind, dtype=torch.float32, attention=wanted, **common)
        return attention.implementation(found)

    assert [loaded("llama", wanted) for wanted in (None, "SDPA", "Eager")] == ["sdpa", "sdpa", "eager"]
    assert loaded("bloom", None) == "eager"
    with pytest.raises(UserError, match=r"model\.attention is SDPA, .* set it to Eager") as refused:
        loaded("bloom", "SDPA")
    assert refused.value.reason == "AttentionUnsupported"
