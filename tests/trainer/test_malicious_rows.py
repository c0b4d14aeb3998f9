"""Data from a stranger: rows and files that would fill the memory or crash a reader are named, and the rest is read."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import hostile
from preparing import CHAT, Room, chat
from sft_trainer.config import ExitCode
from sft_trainer.data import parquet, sources


@pytest.fixture(autouse=True)
def _little_memory() -> Iterator[None]:
    with hostile.little_memory():
        yield


@pytest.fixture
def room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Room:
    return Room(tmp_path, monkeypatch)


def test_a_line_of_gigabytes_is_a_row_that_cannot_be_read(room: Room, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sources, "_LINE", 1 << 20)
    path = room.write("datasets/chats.jsonl", CHAT)
    with path.open("ab") as file:
        file.write(
            b'{"messages": "' + b"a" * (50 << 20) + b'"}\n' + json.dumps(chat("q", "later")).encode() + b"\n"
        )
    outcome = room.run()
    assert (outcome.exit_code, outcome.reason) == (ExitCode.USER_ERROR, "InvalidRow")
    assert "chats.jsonl line 2: has more than 1 MiB" in outcome.message
    outcome = room.run(onInvalidRow="Skip")
    assert outcome.prepare.data.rows == 2
    assert outcome.prepare.data.skipped_rows == 1


@pytest.mark.slow
def test_a_file_that_never_breaks_the_line_takes_no_memory(room: Room):
    path = room.workspace / "datasets" / "chats.jsonl"
    path.write_text('{"messages": "')
    os.truncate(path, 200 << 20)
    outcome = room.run()
    assert (outcome.exit_code, outcome.reason) == (ExitCode.USER_ERROR, "InvalidRow")
    assert "line 1: has more than 64 MiB" in outcome.message


def test_a_json_document_too_large_to_be_read_whole_is_refused(room: Room, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sources, "_DOCUMENT", 1 << 20)
    (room.workspace / "datasets" / "chats.json").write_text("[" + " " * (2 << 20) + "]")
    outcome = room.run(train=[{"name": "0", "path": "datasets/chats.json"}])
    assert (outcome.exit_code, outcome.reason) == (ExitCode.USER_ERROR, "InvalidRow")
    assert "chats.json: a JSON document of 2 MiB" in outcome.message
    assert ".jsonl" in outcome.message


@pytest.mark.parametrize(
    "content",
    [b"", b"PAR1", b"PAR1" + bytes(100) + b"PAR1", b"ARROW1\0\0" + bytes(200), b"\x80\x04cos\nsystem\n.", b"PAR1\xff\xff\xff\x7fPAR1"],
    ids=["empty", "magic-alone", "zeros", "arrow", "pickle", "footer-of-gigabytes"],
)  # fmt: skip
def test_a_file_that_is_no_parquet_is_named(room: Room, content: bytes):
    (room.workspace / "datasets" / "chats.parquet").write_bytes(content)
    outcome = room.run(train=[{"name": "0", "path": "datasets/chats.parquet"}])
    assert outcome.exit_code == ExitCode.USER_ERROR, outcome.message
    assert "chats.parquet" in outcome.message


@pytest.mark.slow
def test_a_parquet_file_of_long_rows_is_read_a_few_at_a_time(room: Room, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(parquet, "_BYTES", 1 << 20)
    path = room.workspace / "datasets" / "chats.parquet"
    rows = {"prompt": [f"{n:03}" + "a" * (250 << 10) for n in range(20)], "completion": ["b"] * 20}
    pq.write_table(pa.table(rows), path, compression="zstd")
    assert path.stat().st_size < 100_000
    assert parquet.batch_size(pq.read_metadata(path)) == 4
    assert (
        room.run(
            train=[{"name": "0", "path": "datasets/chats.parquet"}], lossOn="AllTokens"
        ).prepare.data.rows
        == 20
    )


@pytest.mark.parametrize(
    "row",
    [
        '{"messages": ' + hostile.NESTED + "}",
        '{"messages": [{"role": "user", "content": ' + "9" * 100_000 + "}]}",
        '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "weight": 1e999}]}',
        '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "weight": NaN}]}',
        '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "weight": ' + "9" * 4000 + "}]}",
        '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": "' + "[" * 100_000 + '"}}]}]}',
    ],
    ids=["nested", "digits", "infinite-weight", "weight-no-number", "weight-of-4000-digits", "nested-in-a-tool-call"],
)  # fmt: skip
def test_json_bombs_are_rows_that_cannot_be_read(room: Room, row: str):
    room.write("datasets/chats.jsonl", CHAT, row)
    outcome = room.run()
    assert (outcome.exit_code, outcome.reason) == (ExitCode.USER_ERROR, "InvalidRow"), outcome.message
    assert "chats.jsonl line 2" in outcome.message
    assert len(outcome.message) < 700
