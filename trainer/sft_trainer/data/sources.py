"""Reads the rows of a data source, each with the place where it stands (finding.py finds its files).

JSON lines and Parquet are read piece by piece; a JSON array has to be read whole. A row that cannot be
read is yielded with its error instead of raised, because skipping it may be what the user asked for.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from sft_trainer.config import DataSource
from sft_trainer.data import parquet
from sft_trainer.data.formats import RowError, parse_json
from sft_trainer.errors import UserError

SUFFIXES = {".jsonl": "lines", ".ndjson": "lines", ".json": "json", ".parquet": "parquet"}
_LINE = 64 << 20
"""Bytes of one row, ten million tokens."""
_DOCUMENT = 1 << 30
"""Bytes of a JSON array, which takes some twenty times that in memory."""


class Place(NamedTuple):
    """Where a row stands, for messages: `train[0] support.jsonl line 17`."""

    source: str  # train[0]
    file: str  # relative to the workspace, or "inline"
    unit: str  # line | row
    number: int  # counted from one

    def __str__(self) -> str:
        return f"{self.source} {self.file} {self.unit} {self.number}"


class SourceRow(NamedTuple):
    """One row as it stands in the file: `value`, or the `error` that kept it from being read."""

    place: Place
    value: Any = None
    error: RowError | None = None


@dataclass(frozen=True)
class Opened:
    """A source with its files found. `label` is `train[0]`, `field` is `data.train[0]`."""

    label: str
    source: DataSource
    files: tuple[Path, ...]
    workspace: Path
    copied: Path | None = None
    """The folder with the copy of a store's files."""

    @property
    def is_held_out(self) -> bool:
        """Whether its rows are for evaluation only."""
        return self.label.startswith("eval")

    @property
    def field(self) -> str:
        """The field of the SFTJob which describes this source."""
        return f"data.eval.sources{self.label[4:]}" if self.is_held_out else f"data.{self.label}"

    def rows(self) -> Iterator[SourceRow]:
        """All rows, file by file in the order of their names."""
        if self.source.inline is not None:
            yield from _lines(self.source.inline.encode().splitlines(), self.label, "inline")
        for path in self.files:
            name = self._name(path)
            kind = SUFFIXES[path.suffix.lower()]
            if kind == "lines":
                with path.open("rb") as stream:
                    yield from _lines(_bounded(stream), self.label, name)
            elif kind == "json":
                yield from _json(path, self.label, name)
            else:
                yield from _parquet(path, self.label, name)

    def _name(self, path: Path) -> str:
        """Of a file, as the user knows it."""
        if self.copied is None:
            return relative(path, self.workspace)
        return f"{self.source.uri}: {path.relative_to(self.copied).as_posix()}"

    def digest(self) -> str:
        """Hash of the bytes that `rows` reads."""
        digest = hashlib.sha256((self.source.inline or "").encode())
        for path in self.files:
            with path.open("rb") as stream:
                digest.update(path.suffix.lower().encode() + hashlib.file_digest(stream, "sha256").digest())
        return digest.hexdigest()

    def count(self) -> int | None:
        """Number of lines, as a measure of progress; None if a file would have to be parsed for it."""
        if any(SUFFIXES[path.suffix.lower()] == "json" for path in self.files):
            return None
        return sum(map(_count, self.files)) + len((self.source.inline or "").splitlines())


def _bounded(stream: BinaryIO) -> Iterator[bytes]:
    """The lines of a file; of one that is too long only the beginning, which is too long too."""
    while line := stream.readline(_LINE + 1):
        yield line
        while len(line) > _LINE and line[-1:] != b"\n":
            line = stream.readline(_LINE + 1)


def _lines(lines: Iterable[bytes], label: str, name: str) -> Iterator[SourceRow]:
    """JSON lines from bytes; blank lines are not rows."""
    for number, raw in enumerate(lines, start=1):
        place = Place(label, name, "line", number)
        try:
            if len(raw) > _LINE:
                raise RowError(
                    f"has more than {_LINE >> 20} MiB: is the file one JSON document? Name it .json"
                )
            text = raw.decode("utf-8-sig" if number == 1 else "utf-8")
            if text.strip():
                yield SourceRow(place, parse_json(text))
        except UnicodeDecodeError as exc:
            yield SourceRow(place, error=RowError(f"not valid UTF-8 (byte {exc.start + 1} of the line)"))
        except RowError as exc:
            yield SourceRow(place, error=exc)


def _json(path: Path, label: str, name: str) -> Iterator[SourceRow]:
    """An array of rows, an object with one list of rows, or JSON lines under the wrong name."""
    if (size := path.stat().st_size) > _DOCUMENT:
        raise UserError(
            "InvalidRow",
            f"{label} {name}: a JSON document of {size >> 20:,} MiB would have to be read whole; write one row per "
            "line (.jsonl), which is read piece by piece",
        )
    data = path.read_bytes()
    if not data.strip():
        return
    try:
        document = parse_json(data.decode("utf-8-sig"))
    except UnicodeDecodeError as exc:
        raise UserError("InvalidRow", f"{label} {name}: not valid UTF-8 at byte {exc.start + 1}") from exc
    except RowError as exc:
        if data.lstrip(b"\xef\xbb\xbf \r\n\t").startswith(b"{") and b"\n" in data:
            yield from _lines(data.splitlines(), label, name)
            return
        cause = exc.__cause__
        line = f" line {cause.lineno}" if isinstance(cause, json.JSONDecodeError) else ""
        fix = "fix it, or write one row per line (.jsonl), which names the row and lets onInvalidRow skip it"
        raise UserError("InvalidRow", f"{label} {name}{line}: {exc}; {fix}") from exc
    for number, row in enumerate(_rows_of(document, label, name), start=1):
        yield SourceRow(Place(label, name, "row", number), row)


def _rows_of(document: Any, label: str, name: str) -> list[Any]:
    if isinstance(document, list):
        return document
    if isinstance(document, dict):
        lists = [value for value in document.values() if isinstance(value, list)]
        rows = [value for value in lists if value and isinstance(value[0], dict) and "role" not in value[0]]
        if len(rows) == 1 and "from" not in rows[0][0]:
            return rows[0]
        return [document]  # one line of JSON lines
    raise UserError("InvalidRow", f"{label} {name}: expected a list of rows, found {type(document).__name__}")


def _parquet(path: Path, label: str, name: str) -> Iterator[SourceRow]:
    number = 0
    try:
        for number, row in enumerate(parquet.rows(path), start=1):
            error = RowError(f"a value cannot be read ({row})") if isinstance(row, Exception) else None
            yield SourceRow(Place(label, name, "row", number), None if error else row, error)
    except parquet.Damaged as exc:
        after = f" after row {number}" if number else ""
        raise UserError(
            "InvalidRow", f"{label} {name}{after}: not a readable Parquet file ({exc}); write the file again"
        ) from exc


def _count(path: Path) -> int:
    if SUFFIXES[path.suffix.lower()] == "parquet":
        return parquet.count(path)
    with path.open("rb") as stream:
        return sum(chunk.count(b"\n") for chunk in iter(lambda: stream.read(1 << 20), b""))


def relative(path: Path, workspace: Path) -> str:
    """`path` as users know it."""
    return path.relative_to(workspace).as_posix() if path.is_relative_to(workspace) else str(path)
