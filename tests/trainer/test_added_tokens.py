"""model.addTokens: an ordinary folder whose tokenizer, config and embeddings know more tokens."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file, save_file

import tiny
from preparing import Room, chat
from sft_trainer import rows, vocabulary
from sft_trainer.config import TokenRange
from sft_trainer.data.tokenizer import Tokenizer
from sft_trainer.errors import UserError

NEW = ["<|tool|>", "<|result|>"]
SIZE = 258  # of the tiny model's vocabulary


def extended(folder: Path, tokens: list[str] = NEW, **config: Any) -> tuple[Path, vocabulary.Extended]:
    base = tiny.model(folder / "models" / "tiny")
    if config:
        path = base / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | config))
    return base, vocabulary.extend(base, tokens, folder)


def test_the_model_loads_with_new_rows_that_are_the_mean_of_the_old_ones(tmp_path: Path) -> None:
    base, made = extended(tmp_path)
    assert made.tokens == TokenRange(first=SIZE, count=2)
    before, after = (
        transformers.AutoModelForCausalLM.from_pretrained(str(folder)) for folder in (base, made.directory)
    )
    assert after.config.vocab_size == after.get_input_embeddings().weight.shape[0] == SIZE + 2
    old, new = (model.get_input_embeddings().weight for model in (before, after))
    assert torch.equal(new[:SIZE], old)
    torch.testing.assert_close(new[SIZE:], old.mean(0).expand(2, -1), atol=1e-8, rtol=0)
    ids = torch.arange(40)[None]
    assert torch.equal(after(ids).logits[..., :SIZE], before(ids).logits)


def test_a_new_token_is_never_split_here_or_in_transformers(tmp_path: Path) -> None:
    _, made = extended(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(str(made.directory))
    text = "a<|tool|>b<|result|>\n<|im_end|>"
    expected = [97 - 97, SIZE, 0, SIZE + 1]
    ids = theirs(text, add_special_tokens=False)["input_ids"]
    assert Tokenizer(made.directory).encode([text])[0].ids == ids
    assert [number for number in ids if number >= SIZE] == [SIZE, SIZE + 1], expected
    assert theirs.decode(ids) == text
    assert "<|tool|>" not in theirs.decode(ids, skip_special_tokens=True)


def test_numbers_and_folder_depend_on_the_tokens_and_nothing_else(tmp_path: Path) -> None:
    _, first = extended(tmp_path / "a")
    _, again = extended(tmp_path / "b")
    _, other = extended(tmp_path / "c", ["<|other|>"])
    assert first.directory.name == again.directory.name != other.directory.name
    one, two = (load_file(made.directory / "model.safetensors") for made in (first, again))
    assert all(np.array_equal(one[name], two[name]) for name in one)


def test_a_token_that_is_there_adds_nothing_but_a_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "sft_trainer"):
        base, made = extended(tmp_path, ["<|im_end|>"])
    assert made == vocabulary.Extended(base)
    assert "model.addTokens: <|im_end|> is a token of this model already" in caplog.text


def test_a_piece_of_the_vocabulary_becomes_a_token_without_a_new_row(tmp_path: Path) -> None:
    base, made = extended(tmp_path, ["a"])
    assert made.tokens is None
    assert made.suffix
    assert (made.directory / "model.safetensors").samefile(base / "model.safetensors")
    assert json.loads((made.directory / "tokenizer.json").read_text())["added_tokens"][0]["content"] == "a"


def test_rows_that_a_model_keeps_spare_are_used_first(tmp_path: Path) -> None:
    base = tiny.model(tmp_path / "models" / "tiny")
    weights = load_file(base / "model.safetensors")
    own = weights["model.embed_tokens.weight"]
    weights["model.embed_tokens.weight"] = np.concatenate([own, np.full((5, own.shape[1]), 9, np.float32)])
    save_file(weights, base / "model.safetensors", {"format": "pt"})
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"vocab_size": SIZE + 5}))
    made = vocabulary.extend(base, NEW, tmp_path)
    rows = load_file(made.directory / "model.safetensors")["model.embed_tokens.weight"]
    assert json.loads((made.directory / "config.json").read_text())["vocab_size"] == len(rows) == SIZE + 5
    np.testing.assert_allclose(rows[SIZE], own.astype(np.float64).mean(0), atol=1e-8)
    assert (rows[SIZE + 2 :] == 9).all()


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, torch.float16])
def test_files_of_a_sharded_model_without_a_row_per_token_are_linked(
    kind: torch.dtype, tmp_path: Path
) -> None:
    config = transformers.LlamaConfig(
        vocab_size=SIZE,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=kind)
    base = tiny.model(tmp_path / "models" / "tiny")
    (base / "model.safetensors").unlink()
    model.save_pretrained(str(base), max_shard_size="24KB")
    assert len(list(base.glob("*.safetensors"))) > 3
    made = vocabulary.extend(base, NEW, tmp_path)
    linked = [path for path in made.directory.glob("*.safetensors") if path.samefile(base / path.name)]
    assert len(linked) == len(list(base.glob("*.safetensors"))) - 2
    after = transformers.AutoModelForCausalLM.from_pretrained(str(made.directory), dtype=kind)
    for old, new in (
        (model.get_input_embeddings(), after.get_input_embeddings()),
        (model.get_output_embeddings(), after.get_output_embeddings()),
    ):
        assert torch.equal(new.weight[:SIZE], old.weight)
        assert torch.equal(new.weight[SIZE], old.weight.double().mean(0).to(kind))
    for name, tensor in model.model.layers.state_dict().items():
        assert torch.equal(after.model.layers.state_dict()[name], tensor)


def test_embeddings_of_a_kind_without_a_mean_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file as save

    save({"model.embed_tokens.weight": torch.zeros(4, 8, dtype=torch.uint8)}, tmp_path / "a.safetensors")
    with pytest.raises(UserError, match="holds its embeddings as U8"):
        rows.extend(
            tmp_path / "a.safetensors", tmp_path / "b.safetensors", ["model.embed_tokens.weight"], 4, 1
        )


def test_an_architecture_whose_embedding_is_not_known_is_refused(tmp_path: Path) -> None:
    base = tiny.model(tmp_path / "models" / "tiny")
    weights = load_file(base / "model.safetensors")
    weights["model.shared.weight"] = weights.pop("model.embed_tokens.weight")
    save_file(weights, base / "model.safetensors")
    with pytest.raises(UserError, match="resize_token_embeddings") as caught:
        vocabulary.extend(base, NEW, tmp_path)
    assert caught.value.reason == "AddedTokensUnsupported"
    assert not list(tmp_path.glob(".sftjob/cache/models/tokens-*"))


def test_preparation_counts_a_new_token_once_and_hands_on_the_longer_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = Room(tmp_path, monkeypatch)
    room.write("datasets/chats.jsonl", chat("hi", "<|tool|>"))
    plain = room.run().prepare
    longer = room.run(model={"path": "models/tiny", "addTokens": NEW}).prepare
    assert plain is not None
    assert longer is not None
    assert plain.data.tokens - longer.data.tokens == len("<|tool|>") - 1
    assert longer.data.hash != plain.data.hash
    assert longer.model.added_tokens == TokenRange(first=SIZE, count=2)
    assert longer.model.vocabulary_size == SIZE + 2
    assert longer.model.parameters == plain.model.parameters + 2 * longer.model.hidden_size
    assert longer.model.resolved.startswith(plain.model.resolved + "+")
    again = room.run(model={"path": "models/tiny", "addTokens": NEW}).prepare
    assert again == longer
