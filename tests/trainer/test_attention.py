"""Attention document by document: logits and gradients are those of every document alone."""

from typing import Any

import pytest
import torch
import transformers

from sft_trainer import attention

LENGTHS = [[5, 30, 1, 12], [20, 28]]  # two packs of 48 tokens
SMALL: dict[str, Any] = {
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
MODELS: dict[str, dict[str, Any]] = {
    "llama": {"num_key_value_heads": 2},
    "qwen2": {"num_key_value_heads": 2},
    "qwen3": {"num_key_value_heads": 2, "head_dim": 16},
    "mistral": {"num_key_value_heads": 1, "sliding_window": 7},
    "gemma": {"num_key_value_heads": 1, "head_dim": 8},
    "gemma3_text": {
        "num_key_value_heads": 2,
        "sliding_window": 7,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "phi": {},
    "gpt_neox": {},
}


def network(kind: str, **more: Any) -> Any:
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(kind, **SMALL, **MODELS.get(kind, {}), **more)
    for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
        setattr(config, name, 0)
    return transformers.AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")


def packs() -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.randint(1, 50, (2, 48), generator=torch.Generator().manual_seed(1))
    return ids, torch.stack([torch.cat([torch.arange(n) for n in row]) for row in LENGTHS])


def gradients(model: Any, logits: torch.Tensor) -> list[torch.Tensor]:
    model.zero_grad()
    (logits * torch.linspace(-1, 1, logits.numel()).reshape(logits.shape)).sum().backward()
    return [p.grad.clone() for p in model.parameters()]


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


def test_the_mask_of_a_long_document_with_a_window_is_no_square() -> None:
    long = torch.empty(1, 1, 100_000, 1)
    masks = [mask for *_, mask in attention._blocks(long, long, long, 1024)]
    assert len(masks) == 98
    assert max(mask.numel() for mask in masks if mask is not None) <= 1024 * 2048


def test_padded_rows_are_masked_as_ever() -> None:
    model, (ids, _) = network("mistral"), packs()
    mask = torch.ones_like(ids)
    mask[0, 30:] = 0
    expected = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
    assert attention.use_per_document(model)
    torch.testing.assert_close(model(input_ids=ids, attention_mask=mask, use_cache=False).logits, expected)


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
