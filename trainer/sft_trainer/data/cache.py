"""The token cache: prepared rows on the volume, written once under their content's hash, read by every rank.

An entry is a directory of two Arrow files and facts.json. It is written beside its place and renamed, so that
a reader sees all of it or nothing, and of two writers the slower one throws its copy away. Every byte is
checked before an entry is used again: a truncated cache would train on less data without an error.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import shutil
import time
import uuid
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from sft_trainer import uses
from sft_trainer.data.rows import Rows, joined

logger = logging.getLogger(__name__)

FORMAT_VERSION = 5  # part of the hash: raise it whenever the same input would give other tokens
SCHEMA = pa.schema(
    [
        ("input_ids", pa.list_(pa.int32())),
        ("spans", pa.list_(pa.int32())),
        ("weights", pa.list_(pa.float32())),
    ]
)
SPLITS = ("train", "eval")
_FACTS = "facts.json"
_BATCH_ROWS = 4096
_BATCH_TOKENS = 2**20
_ABANDONED_SECONDS = 24 * 3600
_POLL_SECONDS = 0.5
_LOG_SECONDS = 30.0


class Split:
    """Rows of one Arrow file, memory-mapped: nothing is read before it is asked for."""

    def __init__(self, path: Path) -> None:
        self._file = pa.ipc.open_file(pa.memory_map(str(path)))
        batches = [self._file.get_batch(i) for i in range(self._file.num_record_batches)]
        self._columns = [tuple(_flat(batch, name) for name in SCHEMA.names) for batch in batches]
        self._first = np.cumsum([0] + [batch.num_rows for batch in batches])
        sizes = [np.diff(offsets) for (_, offsets), *_ in self._columns]
        self.lengths: npt.NDArray[np.int64] = np.concatenate([np.zeros(0, np.int64), *sizes])

    def __len__(self) -> int:
        return len(self.lengths)

    def row(self, index: int) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]:
        """Token ids and the weight of each in the loss, 0 = not supervised, both of shape [length].

        IndexError outside the split.
        """
        if not 0 <= index < len(self):
            raise IndexError(index)
        batch = int(np.searchsorted(self._first, index, side="right")) - 1
        (ids, ids_at), (spans, spans_at), (weights, weights_at) = self._columns[batch]
        i = index - int(self._first[batch])
        tokens = ids[ids_at[i] : ids_at[i + 1]]
        each = np.zeros(len(tokens), dtype=np.float32)
        places = spans[spans_at[i] : spans_at[i + 1]].reshape(-1, 2)
        for (start, end), weight in zip(places, weights[weights_at[i] : weights_at[i + 1]], strict=True):
            each[start:end] = weight
        return tokens, each


class TokenCache:
    """A finished entry, for the trainer: `train` and `eval` (which may be of length zero)."""

    def __init__(self, path: Path) -> None:
        self.train = Split(path / "train.arrow")
        self.eval = Split(path / "eval.arrow")


class Writer:
    """Writes the splits of a new entry in batches."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._writers = {
            split: pa.ipc.new_file(str(directory / f"{split}.arrow"), SCHEMA) for split in SPLITS
        }
        self._pending: dict[str, list[Rows]] = {split: [] for split in SPLITS}

    def add(self, split: str, rows: Rows) -> None:
        """Append rows to `split`."""
        pending = self._pending[split]
        pending.append(rows)
        if sum(map(len, pending)) >= _BATCH_ROWS or sum(len(one.ids) for one in pending) >= _BATCH_TOKENS:
            self._flush(split)

    def close(self) -> None:
        """Write what is pending and the files' ends."""
        for split in SPLITS:
            self._flush(split)
            self._writers[split].close()

    def _flush(self, split: str) -> None:
        pending, self._pending[split] = self._pending[split], []
        if any(map(len, pending)):
            rows = joined(pending)
            places = np.searchsorted(rows.span_rows, np.arange(len(rows) + 1))
            columns = [(rows.ids, rows.starts), (rows.spans.reshape(-1), 2 * places), (rows.weights, places)]
            lists = [pa.ListArray.from_arrays(starts.astype(np.int32), flat) for flat, starts in columns]
            self._writers[split].write_batch(pa.record_batch(lists, schema=SCHEMA))


def move_to_eval(directory: Path, kept: Sequence[int], gone: Collection[int]) -> None:
    """Makes the rows `kept` of a small train file the rows of the eval file, and takes `gone` out of it."""
    path = directory / "train.arrow"
    table = pa.ipc.open_file(pa.BufferReader(path.read_bytes())).read_all()
    rest = [index for index in range(table.num_rows) if index not in gone]
    for split, rows in (("train", table.take(rest)), ("eval", table.take(kept))):
        with pa.ipc.new_file(str(directory / f"{split}.arrow"), SCHEMA) as writer:
            writer.write_table(rows)


def key(parts: Iterable[bytes]) -> str:
    """Hash over everything that decides the tokens, 16 hex characters."""
    digest = hashlib.sha256(f"sftjob-data-{FORMAT_VERSION}".encode())
    for part in parts:
        digest.update(len(part).to_bytes(8, "big") + part)
    return digest.hexdigest()[:16]


def lookup(entry: Path) -> dict[str, Any] | None:
    """The facts of a finished entry, if every file in it is what was written; a damaged one is removed.

    OSError for a volume that fails, which says nothing about the entry; other jobs may be reading it.
    """
    uses.touch(entry)
    try:
        seen = _signature(entry)
    except FileNotFoundError:
        return None
    try:
        facts: dict[str, Any] = json.loads((entry / _FACTS).read_text(encoding="utf-8"))
        if all(_fingerprint(entry / name) == stated for name, stated in facts["files"].items()):
            return facts
    except (FileNotFoundError, ValueError, KeyError):
        pass
    logger.warning("the cache entry %s is damaged; preparing it again", entry.name)
    _remove(entry, seen)
    return None


def _signature(entry: Path) -> tuple[int, ...]:
    """Of which writer it is. Not the folder's time, which every use sets; nor its inode alone, which comes again."""
    signs = [entry.stat().st_ino]
    with suppress(FileNotFoundError):
        facts = (entry / _FACTS).stat()
        signs += [facts.st_ino, facts.st_mtime_ns]
    return tuple(signs)


def _remove(entry: Path, seen: tuple[int, ...]) -> None:
    """Remove the entry that was `seen`; one that another writer has put in its place meanwhile stays."""
    aside = _beside(entry)
    with suppress(FileNotFoundError):
        entry.rename(aside)
        if _signature(aside) != seen:
            publish(aside, entry)
    shutil.rmtree(aside, ignore_errors=True)


@contextmanager
def staging(entry: Path) -> Iterator[Path]:
    """A fresh directory beside `entry`, removed again unless `commit` has moved it away."""
    entry.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(entry.parent)
    directory = _beside(entry)
    directory.mkdir()
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _beside(entry: Path) -> Path:
    return entry.with_name(f".{entry.name}.{uuid.uuid4().hex[:8]}")


@contextmanager
def alone(entry: Path) -> Iterator[bool]:
    """Hold the lock of `entry`, so that jobs which start together make it once; whether it is held.

    It is the kernel's: it ends with the process, however that ends, and on NFS 4 with the lease of a node that is
    gone; no pid and no clock is looked at, which would mean nothing on another node. A volume without locks is used
    without: then the work may be done twice, and the rename decides.
    """
    entry.parent.mkdir(parents=True, exist_ok=True)
    with _lock(entry).open("w") as handle:
        began = told = time.monotonic()
        while (is_held := _locked(handle)) is None:
            if told == began or time.monotonic() - told >= _LOG_SECONDS:
                told = time.monotonic()
                name = f"{entry.parent.name}/{entry.name}"
                logger.info("waiting for another job that prepares %s, %.0f s so far", name, told - began)
            time.sleep(_POLL_SECONDS)
        yield is_held


@contextmanager
def at_once(entry: Path) -> Iterator[bool]:
    """As `alone`, but without waiting: whether nobody else holds the lock."""
    with _lock(entry).open("w") as handle:
        yield _locked(handle) is not None


def _lock(entry: Path) -> Path:
    return entry.with_name(f".{entry.name}.lock")


def _locked(handle: IO[str]) -> bool | None:
    """Whether the lock is ours; None while it is another's. False: the volume has no locks."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return None
    except OSError as exc:
        logger.warning("the volume has no file locks (%s)", exc)
        return False
    return True


def commit(directory: Path, entry: Path, facts: dict[str, Any], files: Sequence[str]) -> None:
    """Make `directory` the entry: contents on disk first, then the name. Another's finished entry is kept."""
    stated = {name: _fingerprint(directory / name) for name in files}
    (directory / _FACTS).write_text(json.dumps({**facts, "files": stated}, indent=1), encoding="utf-8")
    for name in [*files, _FACTS]:
        sync(directory / name)
    publish(directory, entry)


def publish(directory: Path, entry: Path) -> None:
    """Rename a finished directory into place; if another writer was faster, its entry stays and ours goes."""
    sync(directory)
    try:
        directory.rename(entry)
    except OSError:
        if not entry.is_dir():
            raise
        shutil.rmtree(directory, ignore_errors=True)
    sync(entry.parent)


def sync(path: Path) -> None:
    """Flush a file or directory to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _fingerprint(path: Path) -> dict[str, Any]:
    with path.open("rb") as stream:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(stream, "sha256").hexdigest()}


def _remove_abandoned(parent: Path) -> None:
    """What killed writers have left; a day is longer than any preparation."""
    for left in parent.glob(".*.????????"):
        try:
            if time.time() - left.stat().st_mtime > _ABANDONED_SECONDS:
                shutil.rmtree(left, ignore_errors=True)
        except FileNotFoundError:
            continue


def _flat(batch: pa.RecordBatch, name: str) -> tuple[npt.NDArray[Any], npt.NDArray[np.int32]]:
    """Values and row offsets of a list column, without copying."""
    column = batch.column(batch.schema.get_field_index(name))
    return column.values.to_numpy(), column.offsets.to_numpy()
