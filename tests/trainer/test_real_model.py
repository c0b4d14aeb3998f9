"""The real tokenizer and model: what is supervised, decoded, equals what the assistant said."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

import assets
from preparing import Room
from sft_trainer.data import formats, packing
from sft_trainer.data.supervision import supervise
from sft_trainer.data.tokenise import tokenise
from sft_trainer.data.tokenizer import Tokenizer, chat_template

pytestmark = pytest.mark.model

EXAMPLES = Path(__file__).parents[2] / "examples" / "data"
END = "<|im_end|>"


@pytest.fixture
def room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Room:
    made = Room(tmp_path, monkeypatch, model=False)
    (made.workspace / "models").mkdir()
    folder = assets.model_folder()
    shutil.copytree(folder, made.workspace / "models" / "smol", copy_function=_link)
    return made


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # the cache is on another volume
        shutil.copy(source, target)


def _messages(line: str) -> list[dict[str, str]]:
    """The turns of an example row in the order of the file, whichever of two formats it has."""
    row = json.loads(line)
    names = {"human": "user", "gpt": "assistant"}
    shared = [
        {"role": names.get(t["from"], t["from"]), "content": t["value"]} for t in row.get("conversations", [])
    ]
    return row.get("messages") or shared


@pytest.mark.parametrize("name", ["support-en.jsonl", "support-zh.jsonl"])
def test_supervised_tokens_decode_to_the_answers_of_the_example_data(room: Room, name: str) -> None:
    lines = (EXAMPLES / name).read_text().splitlines()
    room.write("datasets/chats.jsonl", *lines)
    outcome = room.run(model={"path": "models/smol"}, maxLength=2048)
    rows = [_messages(line) for line in lines]
    assert len(rows) >= 30
    expected = ["".join(m["content"] + END for m in row if m["role"] == "assistant") for row in rows]
    train = room.cache(outcome).train
    assert [supervised for _, supervised in room.texts(train, "models/smol")] == expected
    for index, (text, _) in enumerate(room.texts(train, "models/smol")):
        assert all(m["content"] in text for m in rows[index])


def test_the_alpaca_rows_of_a_public_data_set_are_supervised_alike(room: Room) -> None:
    rows: list[dict[str, Any]] = json.loads(assets.identity_json().read_text())
    shutil.copy(assets.identity_json(), room.workspace / "datasets" / "identity.json")
    outcome = room.run(
        model={"path": "models/smol"}, train=[{"name": "0", "path": "datasets/identity.json"}], maxLength=512
    )
    texts = room.texts(room.cache(outcome).train, "models/smol")
    assert [supervised for _, supervised in texts] == [row["output"] + END for row in rows]


def test_a_real_data_set_fills_its_sequences(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one that `make bench-trainer` trains on; less than 3 % are padding."""
    monkeypatch.syspath_prepend(str(EXAMPLES.parents[1]))
    from bench.trainer.rows import CHATS, chat_rows

    room.write("datasets/chats.jsonl", *chat_rows(json.loads(assets.fetch(CHATS).read_bytes())))
    outcome = room.run(model={"path": "models/smol"}, maxLength=2048)
    assert outcome.prepare is not None, outcome.message
    found = outcome.prepare.data
    assert found.rows == 480
    assert found.tokens > 0.97 * found.packs * 2048
    packs = packing.pack(room.cache(outcome).train.lengths, 2048, 1, 0)
    assert len(packs) == found.packs


def test_end_and_padding_being_one_token_does_not_unsupervise_the_end(room: Room) -> None:
    tokenizer = Tokenizer(room.workspace / "models" / "smol")
    assert tokenizer.special_tokens["pad_token"] == tokenizer.special_tokens["eos_token"] == END
    room.write(
        "datasets/chats.jsonl",
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
    )
    ids, weights = room.cache(room.run(model={"path": "models/smol"})).train.row(0)
    assert tokenizer.decode(ids[weights > 0].tolist()) == f"b{END}"
    assert tokenizer.decode(ids[-1:].tolist()) == "\n"
    assert not weights[-1]


def test_rendering_and_tokens_are_those_of_transformers(room: Room) -> None:
    import transformers

    folder = room.workspace / "models" / "smol"
    theirs = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    tokenizer = Tokenizer(folder)
    template = chat_template(folder, tokenizer, None, room.workspace)
    for line in (EXAMPLES / "support-zh.jsonl").read_text().splitlines()[:10]:
        messages = _messages(line)
        row = {"messages": messages}
        ours = tokenise(
            [supervise(formats.conversation(row, "Messages", {}), template, "Assistant")], tokenizer
        )
        assert ours.ids.tolist() == theirs.apply_chat_template(messages, return_dict=False)


def test_a_gguf_file_is_converted_once_and_its_facts_are_right(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(assets.model_gguf(), room.workspace / "models" / "smol.gguf")
    room.write("datasets/chats.jsonl", *(EXAMPLES / "support-en.jsonl").read_text().splitlines()[:3])
    first = room.run(model={"path": "models/smol.gguf"})
    assert first.prepare is not None, first.message
    model = first.prepare.model
    assert model.resolved == f"models/smol.gguf@sha256:{assets.MODEL.sha256[:16]}"
    assert (model.parameters, model.embedding_parameters) == (134_515_008, 28_311_552)
    assert (model.layers, model.hidden_size, model.vocabulary_size, model.tied_embeddings) == (
        30,
        576,
        49_152,
        True,
    )
    assert model.lora_parameters_per_rank == 30 * (2 * (576 + 576) + 2 * (576 + 192) + 3 * (576 + 1536))
    folder = room.workspace / model.directory
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (folder / name).stat().st_mode & 0o044 == 0o044
    assert json.loads((folder / "generation_config.json").read_text())["eos_token_id"] == 2
    written = (folder / "model.safetensors").stat().st_mtime_ns
    assert room.run(model={"path": "models/smol.gguf"}).prepare == first.prepare
    assert (folder / "model.safetensors").stat().st_mtime_ns == written
