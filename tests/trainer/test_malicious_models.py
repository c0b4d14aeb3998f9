"""A model folder from a stranger: whatever its files say, preparation ends with one sentence, soon and in little memory."""

from __future__ import annotations

import json
import struct
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch  # here: it maps more than a test may take below

import hostile
import tiny
from hostile import NESTED
from preparing import CHAT, Room
from sft_trainer.config import ExitCode

Spoil = Callable[[Path], None]


@pytest.fixture
def room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Room:
    made = Room(tmp_path, monkeypatch)
    made.write("datasets/chats.jsonl", CHAT)
    return made


@pytest.fixture(autouse=True)
def _little_memory() -> Iterator[None]:
    with hostile.little_memory():
        yield


def config(**changed: Any) -> Spoil:
    """config.json with other values."""

    def spoil(model: Path) -> None:
        path = model / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changed}))

    return spoil


def text(name: str, content: str) -> Spoil:
    return lambda model: (model / name).write_text(content) and None


def large(name: str, start: str = "") -> Spoil:
    return lambda model: hostile.sparse(model / name, 4, start) and None


def header(entries: Any, data: int = 0, length: int | None = None) -> Spoil:
    """A safetensors file of this header, of `data` bytes, and of another length of the header than it says."""

    def spoil(model: Path) -> None:
        words = entries.encode() if isinstance(entries, str) else json.dumps(entries).encode()
        stated = len(words) if length is None else length
        (model / "model.safetensors").write_bytes(struct.pack("<Q", stated) + words + bytes(data))

    return spoil


def tensor(shape: Any, offsets: Any = (0, 8), dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def tokenizer(**changed: Any) -> Spoil:
    """tokenizer.json with other parts."""

    def spoil(model: Path) -> None:
        path = model / "tokenizer.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changed}))

    return spoil


def index(weight_map: Any) -> Spoil:
    return text("model.safetensors.index.json", json.dumps({"weight_map": weight_map}))


def link(name: str, target: str) -> Spoil:
    def spoil(model: Path) -> None:
        (model / name).unlink(missing_ok=True)
        (model / name).symlink_to(target)

    return spoil


SHARED = {"a": tensor([2], (0, 8)), "b": tensor([2], (4, 12))}

FOLDERS: dict[str, tuple[Spoil, str]] = {
    "config-nested": (text("config.json", NESTED), "config.json"),
    "config-not-utf8": (lambda model: (model / "config.json").write_bytes(b"\xff\xfe{}") and None, "config.json"),
    "config-of-gigabytes": (large("config.json", "{"), "config.json"),
    "config-layers-infinite": (text("config.json", '{"architectures": ["LlamaForCausalLM"], "hidden_size": 1e999}'), "hidden_size"),
    "config-layers-negative": (config(num_hidden_layers=-1), "num_hidden_layers"),
    "config-layers-zero": (config(num_hidden_layers=0), "num_hidden_layers"),
    "config-layers-absurd": (config(num_hidden_layers=10**30), "num_hidden_layers"),
    "config-layers-as-list": (config(num_hidden_layers=[1]), "num_hidden_layers"),
    "config-hidden-a-boolean": (config(hidden_size=True), "hidden_size"),
    "config-vocabulary-not-a-number": (text("config.json", '{"architectures": ["LlamaForCausalLM"], "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "vocab_size": NaN}'), "vocab_size"),
    "config-architectures-an-object": (config(architectures={"a": 1}), "architecture"),
    "config-text-config-a-list": (config(text_config=[1]), "text_config"),
    "config-digits": (text("config.json", '{"hidden_size": ' + "9" * 100_000 + "}"), "config.json"),
    "weights-header-of-exabytes": (header({}, length=2**63), "model.safetensors"),
    "weights-header-of-gigabytes": (large("model.safetensors"), "model.safetensors"),
    "weights-header-cut": (header({"a": tensor([2])}, length=10_000), "model.safetensors"),
    "weights-header-nested": (header('{"a":' + NESTED + "}"), "model.safetensors"),
    "weights-header-a-list": (header([1, 2]), "model.safetensors"),
    "weights-header-digits": (header('{"a":' + "9" * 100_000 + "}"), "model.safetensors"),
    "weights-shape-missing": (header({"a": {"dtype": "F32", "data_offsets": [0, 8]}}, 8), "model.safetensors"),
    "weights-shape-text": (header({"a": tensor("ab")}, 8), "model.safetensors"),
    "weights-shape-of-texts": (header({"a": tensor(["2"])}, 8), "model.safetensors"),
    "weights-shape-negative": (header({"a": tensor([-1, -2])}, 8), "model.safetensors"),
    "weights-shape-overflows": (header({"a": tensor([2**40, 2**40])}, 8), "model.safetensors"),
    "weights-shape-larger-than-the-bytes": (header({"a": tensor([1000])}, 8), "model.safetensors"),
    "weights-dtype-unknown": (header({"a": tensor([2], dtype="X9")}, 8), "model.safetensors"),
    "weights-dtype-an-object": (header({"a": tensor([2], dtype={})}, 8), "model.safetensors"),
    "weights-offsets-negative": (header({"a": tensor([2], (-8, 0))}), "model.safetensors"),
    "weights-offsets-backwards": (header({"a": tensor([2], (8, 0)), "b": tensor([2], (0, 8))}, 8), "model.safetensors"),
    "weights-offsets-text": (header({"a": tensor([2], ("0", "8"))}, 8), "model.safetensors"),
    "weights-offsets-overlap": (header(SHARED, 12), "model.safetensors"),
    "weights-offsets-with-a-gap": (header({"a": tensor([2], (8, 16))}, 16), "model.safetensors"),
    "index-leaves-the-folder": (index({"a": "../../../outside.safetensors"}), "model.safetensors.index.json"),
    "index-absolute": (index({"a": "/etc/hostname"}), "model.safetensors.index.json"),
    "index-of-numbers": (index({"a": 7}), "model.safetensors.index.json"),
    "index-a-list": (index([1]), "model.safetensors.index.json"),
    "index-nested": (text("model.safetensors.index.json", NESTED), "model.safetensors.index.json"),
    "tokenizer-of-gigabytes": (large("tokenizer.json", "{"), "tokenizer.json"),
    "tokenizer-nested": (text("tokenizer.json", '{"model":' + NESTED + "}"), "tokenizer.json"),
    "tokenizer-merges-of-nothing": (
        text("tokenizer.json", '{"version":"1.0","model":{"type":"BPE","vocab":{},"merges":["a b"]}}'),
        "tokenizer.json",
    ),
    "tokenizer-panics-when-loaded": (tokenizer(normalizer={"type": "Precompiled", "precompiled_charsmap": "CAAAAP////////////8="}), "tokenizer.json"),
    "tokenizer-panics-when-used": (tokenizer(pre_tokenizer={"type": "FixedLength", "length": 0}), "tokenizer.json"),
    "tokenizer-panics-in-its-normalizer": (tokenizer(normalizer={"type": "Replace", "pattern": {"Regex": ""}, "content": "x"}), "tokenizer.json"),
    "tokenizer-with-a-token-of-billions": (tokenizer(model={"type": "WordLevel", "unk_token": "a", "vocab": {"a": 4294967295}}), "token"),
    "tokenizer-config-nested": (text("tokenizer_config.json", NESTED), "tokenizer_config.json"),
    "tokenizer-config-of-gigabytes": (large("tokenizer_config.json", "{"), "tokenizer_config.json"),
    "template-of-gigabytes": (large("chat_template.jinja"), "chat_template.jinja"),
    "template-not-utf8": (lambda model: (model / "chat_template.jinja").write_bytes(b"\xff") and None, "chat_template.jinja"),
    "weights-link-out": (link("model.safetensors", "/proc/self/environ"), "model.safetensors"),
    "template-link-out": (link("chat_template.jinja", "/proc/self/environ"), "chat_template.jinja"),
    "config-link-out": (link("config.json", "/etc/hostname"), "config.json"),
    "code-link-out": (link("modeling.py", "/etc/hostname"), "modeling.py"),
}  # fmt: skip


@pytest.mark.parametrize(("spoil", "words"), FOLDERS.values(), ids=FOLDERS)
def test_a_folder_that_lies_is_refused_in_one_sentence_that_names_the_file(
    room: Room, spoil: Spoil, words: str, caplog: pytest.LogCaptureFixture
):
    spoil(room.workspace / "models" / "tiny")
    outcome = room.run()
    assert outcome.exit_code == ExitCode.USER_ERROR, outcome.message
    assert words in outcome.message
    assert len(outcome.message) < 700
    assert "Traceback" not in caplog.text


PICKLES = ("pytorch_model.bin", "model.pt", "model.pth", "model.ckpt")


@pytest.mark.parametrize("name", PICKLES)
def test_pickled_weights_are_refused_by_name_and_never_opened(room: Room, name: str):
    model = room.workspace / "models" / "tiny"
    (model / "model.safetensors").unlink()
    (model / name).write_bytes(b"cos\nsystem\n(S'touch " + str(room.workspace / "ran").encode() + b"'\ntR.")
    outcome = room.run()
    assert (outcome.exit_code, outcome.reason) == (ExitCode.USER_ERROR, "WeightsMissing")
    assert name in outcome.message
    assert not (room.workspace / "ran").exists()


def test_a_pickle_beside_the_weights_is_not_looked_at(room: Room):
    model = room.workspace / "models" / "tiny"
    (model / "pytorch_model.bin").write_bytes(
        b"cos\nsystem\n(S'touch " + str(room.workspace / "ran").encode() + b"'\ntR."
    )
    assert room.run().exit_code == 0
    assert not (room.workspace / "ran").exists()


EVIL = "import pathlib\npathlib.Path({ran!r}).write_text('')\nclass Evil:\n    pass\n"


def _with_code(model: Path, ran: Path) -> None:
    """The folder of a model whose own code writes `ran` when anything imports it."""
    for name in ("modeling_evil.py", "configuration_evil.py", "tokenization_evil.py"):
        (model / name).write_text(EVIL.format(ran=str(ran)))
    names = {"AutoConfig": "configuration_evil.Evil", "AutoModelForCausalLM": "modeling_evil.Evil"}
    config(model_type="evil", auto_map=names)(model)
    words = json.loads((model / "tokenizer_config.json").read_text())
    words["auto_map"] = {"AutoTokenizer": ["tokenization_evil.Evil", "tokenization_evil.Evil"]}
    (model / "tokenizer_config.json").write_text(json.dumps(words))


def test_code_in_a_model_folder_does_not_run_in_preparation(room: Room):
    ran = room.workspace / "ran"
    _with_code(room.workspace / "models" / "tiny", ran)
    room.run()
    assert not ran.exists()
    assert not [name for name in sys.modules if "evil" in name]


@pytest.mark.processes
def test_code_in_a_model_folder_does_not_run_when_ranks_load_it_or_somebody_chats_with_it(tmp_path: Path):
    from sft_trainer import model as loading
    from sft_trainer.chat import talker
    from sft_trainer.errors import UserError

    folder, ran = tiny.model(tmp_path / "tiny"), tmp_path / "ran"
    _with_code(folder, ran)
    with pytest.raises(UserError, match="cannot be loaded"):
        loading.load(
            folder, dtype=torch.float32, adapters=None, activation_checkpointing="None", zero3=None, seed=0
        )
    with pytest.raises(ValueError, match="trust_remote_code|evil"):
        talker(folder)
    assert not ran.exists()
