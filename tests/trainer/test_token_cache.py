"""The token cache: what is written is what is read, and a damaged entry is never used."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sft_trainer import uses
from sft_trainer.data import cache
from token_rows import Tokens, together


def rows(count: int) -> list[Tokens]:
    random = np.random.default_rng(count)
    return [
        Tokens(
            random.integers(0, 50_000, size, np.int32).tolist(),
            ((1, 2), (3, int(size))) if size > 3 else (),
            (0.5, 3.0) if size % 2 and size > 3 else None,
        )
        for size in random.integers(1, 60, count)
    ]


def write(entry: Path, train: list[Tokens], held_out: list[Tokens] | None = None) -> None:
    with cache.staging(entry) as directory:
        writer = cache.Writer(directory)
        for split, tokens in (("train", train), ("eval", held_out or [])):
            for first in range(0, len(tokens), 100):
                writer.add(split, together(tokens[first : first + 100]))
        writer.close()
        cache.commit(directory, entry, {"data": {"rows": len(train)}}, ["train.arrow", "eval.arrow"])


def test_rows_come_back_as_they_were_written_over_many_batches(tmp_path: Path) -> None:
    train, held_out = rows(2500), rows(3)
    write(tmp_path / "c", train, held_out)
    read = cache.TokenCache(tmp_path / "c")
    assert read.train.lengths.tolist() == [len(row.ids) for row in train]
    for index in (0, 1023, 1024, 2499):
        ids, weights = read.train.row(index)
        assert (ids.dtype, weights.dtype) == (np.int32, np.float32)
        assert ids.tolist() == train[index].ids
        assert np.count_nonzero(weights) == train[index].supervised
        for (start, end), weight in zip(train[index].spans, train[index].weights or (1, 1), strict=False):
            assert (weights[start:end] == weight).all()
    assert [read.eval.row(i)[0].tolist() for i in range(3)] == [row.ids for row in held_out]


def test_a_split_may_be_empty(tmp_path: Path) -> None:
    write(tmp_path / "c", rows(2))
    read = cache.TokenCache(tmp_path / "c").eval
    assert len(read) == 0
    assert read.lengths.dtype == np.int64
    with pytest.raises(IndexError):
        read.row(0)


def test_an_intact_entry_is_found_with_its_facts(tmp_path: Path) -> None:
    write(tmp_path / "c", rows(5))
    found = cache.lookup(tmp_path / "c")
    assert found is not None
    assert found["data"] == {"rows": 5}
    assert cache.lookup(tmp_path / "other") is None


@pytest.mark.parametrize("harm", ["truncated", "altered", "missing", "no facts", "facts cut"])
def test_a_damaged_entry_is_removed(tmp_path: Path, harm: str) -> None:
    entry = tmp_path / "c"
    write(entry, rows(5))
    data = (entry / "train.arrow").read_bytes()
    if harm == "truncated":
        (entry / "train.arrow").write_bytes(data[:-1])
    elif harm == "altered":
        (entry / "train.arrow").write_bytes(data[:100] + bytes([data[100] ^ 1]) + data[101:])
    elif harm == "missing":
        (entry / "eval.arrow").unlink()
    elif harm == "no facts":
        (entry / "facts.json").unlink()
    else:
        (entry / "facts.json").write_text('{"files": ')
    assert cache.lookup(entry) is None
    assert not entry.exists()


def test_a_damaged_entry_goes_although_others_look_at_it_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = tmp_path / "c"
    write(entry, rows(5))
    (entry / "train.arrow").write_bytes(b"")
    digest = hashlib.file_digest

    def slow(*words: Any) -> Any:
        uses.touch(entry)
        return digest(*words)

    monkeypatch.setattr(hashlib, "file_digest", slow)
    assert cache.lookup(entry) is None
    assert not entry.exists()


@pytest.mark.parametrize("name", ["facts.json", "train.arrow"])
def test_a_volume_that_fails_damages_no_entry(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other jobs may be reading it."""
    entry = tmp_path / "c"
    write(entry, rows(5))
    opened = io.open

    def failing(file: object, *options: object, **more: object) -> object:
        if str(file).endswith(name):
            raise OSError(errno.EIO, "Input/output error")
        return opened(file, *options, **more)  # type: ignore[call-overload]

    monkeypatch.setattr(io, "open", failing)
    with pytest.raises(OSError, match="Input/output error"):
        cache.lookup(entry)
    monkeypatch.undo()
    assert cache.lookup(entry) is not None


def test_what_another_writer_has_published_meanwhile_is_not_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = tmp_path / "c"
    write(entry, rows(5))
    (entry / "facts.json").write_text("{")
    loads = json.loads

    def slow(text: str) -> object:
        shutil.rmtree(entry)
        write(entry, rows(5))
        return loads(text)

    with monkeypatch.context() as patch:
        patch.setattr(cache.json, "loads", slow)  # type: ignore[attr-defined]
        assert cache.lookup(entry) is None
    assert cache.lookup(entry) is not None
    assert [path.name for path in tmp_path.iterdir()] == ["c"]


_HOLDER = """
import sys, time
from pathlib import Path
from sft_trainer.data import cache
with cache.alone(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def test_who_waits_says_so_and_goes_on_when_the_one_before_is_killed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    command = [sys.executable, "-c", _HOLDER, str(tmp_path / "data" / "c")]
    entered = threading.Event()

    def wait() -> None:
        with cache.alone(tmp_path / "data" / "c"):
            entered.set()

    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        waiter = threading.Thread(target=wait)
        waiter.start()
        assert not entered.wait(0.2)
        holder.kill()
    waiter.join(60)
    assert entered.is_set()
    assert "waiting for another job that prepares data/c, 0 s so far" in caplog.text


def test_writers_at_the_same_time_leave_one_intact_entry_and_nothing_else(tmp_path: Path) -> None:
    barrier = threading.Barrier(4)

    def writer(_: int) -> None:
        barrier.wait()
        write(tmp_path / "c", rows(50))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(writer, range(4)))
    assert cache.lookup(tmp_path / "c") is not None
    assert [path.name for path in tmp_path.iterdir()] == ["c"]


def test_a_failed_writer_leaves_nothing(tmp_path: Path) -> None:
    def fail() -> None:
        with cache.staging(tmp_path / "c") as directory:
            (directory / "train.arrow").write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_a_row_can_be_moved_to_the_held_out_ones(tmp_path: Path) -> None:
    train = rows(4)
    write(tmp_path / "c", train)
    cache.move_to_eval(tmp_path / "c", [1], {1})
    read = cache.TokenCache(tmp_path / "c")
    assert [read.train.row(i)[0].tolist() for i in range(3)] == [train[i].ids for i in (0, 2, 3)]
    ids, weights = read.eval.row(0)
    assert ids.tolist() == train[1].ids
    assert np.count_nonzero(weights) == train[1].supervised


def test_the_key_tells_parts_apart(tmp_path: Path) -> None:
    assert cache.key([b"ab", b"c"]) != cache.key([b"a", b"bc"])
    assert cache.key([b"ab"]) == cache.key([b"ab"])


def test_facts_on_the_volume_are_readable_by_people(tmp_path: Path) -> None:
    write(tmp_path / "c", rows(5))
    assert json.loads((tmp_path / "c" / "facts.json").read_text())["files"]["train.arrow"]["bytes"] > 0
