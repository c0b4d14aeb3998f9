"""GGUF files whose counts are lies: refused at the header, before a library counts along. The real one: test_real_model.py."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

import hostile
from preparing import CHAT, Room
from sft_trainer import ggufheader
from sft_trainer.config import ExitCode


@pytest.fixture(autouse=True)
def _little_memory() -> Iterator[None]:
    with hostile.little_memory():
        yield


def text(words: bytes) -> bytes:
    return struct.pack("<Q", len(words)) + words


def start(tensors: int, keys: int, version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, keys)


def key(name: bytes, kind: int, value: bytes) -> bytes:
    return text(name) + struct.pack("<I", kind) + value


def listing(of: int, count: int) -> bytes:
    return struct.pack("<IQ", of, count)


def tensor(shape: list[int], offset: int = 0) -> bytes:
    dimensions = struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
    return text(b"blk.0.attn_q.weight") + dimensions + struct.pack("<IQ", 0, offset)


LLAMA = key(b"general.architecture", 8, text(b"llama"))
LAYERS = key(b"llama.block_count", 4, struct.pack("<I", 1))
HONEST = (
    start(1, 4)
    + LLAMA
    + LAYERS
    + key(b"x", 9, listing(8, 2) + text(b"a") * 2)
    + key(b"y", 6, bytes(4))
    + tensor([8])
)
HOSTILE = {
    "cut": b"GGUF",
    "version": start(0, 0, 99),
    "big-endian": b"GGUF" + struct.pack(">IQQ", 3, 0, 0),
    "tensors-without-end": start(2**62, 1) + LLAMA,
    "keys-without-end": start(0, 2**62) + LLAMA,
    "key-of-exabytes": start(0, 1) + struct.pack("<Q", 2**62) + b"a",
    "text-of-exabytes": start(0, 1) + key(b"a", 8, struct.pack("<Q", 2**63)),
    "list-of-exabytes": start(0, 1) + key(b"a", 9, listing(0, 2**62) + bytes(1000)),
    "list-of-texts-without-end": start(0, 1) + key(b"a", 9, listing(8, 2**62) + bytes(1000)),
    "lists-in-lists": start(0, 1) + key(b"a", 9, listing(9, 1) * 100_000),
    "type-unknown": start(0, 1) + key(b"a", 77, bytes(8)),
    "dimensions-without-end": start(1, 1) + LLAMA + text(b"t") + struct.pack("<I", 2**31) + bytes(100),
    "shape-overflows": start(1, 1) + LLAMA + tensor([2**40, 2**40]),
    "offset-behind-the-end": start(1, 1) + LLAMA + tensor([8], 2**60),
    "layers-without-end": start(1, 2) + LLAMA + key(b"llama.block_count", 10, struct.pack("<Q", 2**40)) + tensor([8]),
    "width-without-end": start(1, 2) + LLAMA + key(b"llama.embedding_length", 10, struct.pack("<Q", 2**40)) + tensor([8]),
    "width-negative": start(1, 2) + LLAMA + key(b"llama.embedding_length", 5, struct.pack("<i", -5)) + tensor([8]),
}  # fmt: skip


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE)
def test_a_header_that_lies_is_refused_and_the_file_named(
    content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    room = Room(tmp_path, monkeypatch, model=False)
    room.write("datasets/chats.jsonl", CHAT)
    (room.workspace / "models").mkdir()
    (room.workspace / "models" / "m.gguf").write_bytes(content)
    outcome = room.run(model={"path": "models/m.gguf"})
    assert (outcome.exit_code, outcome.reason) == (ExitCode.USER_ERROR, "InvalidModel"), outcome.message
    assert "m.gguf is damaged: its header" in outcome.message
    assert "Traceback" not in caplog.text


def test_an_honest_header_has_nothing_to_be_refused(tmp_path: Path):
    (tmp_path / "m.gguf").write_bytes(HONEST + bytes(64))
    ggufheader.check(tmp_path / "m.gguf")
