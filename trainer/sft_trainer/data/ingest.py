"""One pass over the rows: reads, validates, renders, masks, tokenises, counts and writes them.

Rows stream through in small batches, so memory does not grow with the data. Whatever is wrong with a row is
reported with its place, or counted if the job says `onInvalidRow: Skip`.
"""

from __future__ import annotations

import logging
import math
import time
from array import array
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from sft_trainer.config import DataConfig
from sft_trainer.data import cache, content, formats
from sft_trainer.data.ahead import Ahead
from sft_trainer.data.counts import Counts, refuse_useless
from sft_trainer.data.digests import Digests
from sft_trainer.data.formats import Conversation, FormatError, RowError
from sft_trainer.data.likeliest import Likeliest
from sft_trainer.data.rows import Rows
from sft_trainer.data.sources import Opened, Place, SourceRow
from sft_trainer.data.supervision import Supervision, supervise
from sft_trainer.data.template import ChatTemplate
from sft_trainer.data.tokenise import tokenise
from sft_trainer.data.tokenizer import Tokenizer
from sft_trainer.errors import UserError

logger = logging.getLogger(__name__)

_BATCH_ROWS = 1024  # tokenised together
_BATCH_CHARACTERS = 2**20  # of whose tokens the tokenizer's own records take some 100 MB
_LOG_SECONDS = 5.0
_LOGGED_SKIPS = 10


@dataclass(frozen=True)
class Recipe:
    """Everything but the rows that decides the tokens."""

    data: DataConfig
    tokenizer: Tokenizer
    template: ChatTemplate
    vocabulary_size: int


class Rendered(NamedTuple):
    """A row that can be trained on, before it is tokenised."""

    place: Place
    supervision: Supervision
    fingerprint: bytes  # of its words; empty where nothing is decided by it


class Ingest:
    """One pass over all sources into `directory`."""

    def __init__(self, recipe: Recipe, directory: Path) -> None:
        self._recipe = recipe
        self._directory = directory
        self._writer = cache.Writer(directory)
        self._counts = Counts()
        self._lengths = array("i")
        self._seen = Digests()
        self._likeliest = Likeliest()
        self._logged = time.monotonic()
        self._split_percent = recipe.data.eval.split_percent if recipe.data.eval else None

    def run(self, opened: Sequence[Opened]) -> tuple[Counts, array[int]]:
        """What happened, and the length of every training row. UserError if nothing is left to train on."""
        total = _total_rows(opened)
        for one in opened:
            self._source(one, total)
        self._writer.close()
        if self._split_percent is not None and not self._counts.eval_rows:
            self._lengths = self._likeliest.hold_out(self._directory, self._counts, self._lengths)
        refuse_useless(self._counts, len(self._lengths), self._recipe.data)
        return self._counts, self._lengths

    def _source(self, one: Opened, total: int | None) -> None:
        before = self._counts.read
        with (
            closing(Ahead(_batches(self._valid(one)), "render")) as batches,
            closing(Ahead(self._tokenised(batches), "tokenise")) as tokenised,
        ):
            for batch, rows in tokenised:
                self._check_vocabulary(batch, rows)
                self._keep(one, batch, rows)
                self._log(total)
        if self._counts.read == before:
            place = one.source.path or one.source.uri
            where = f"{one.field}: {place}" if place else f"{one.field}.inline"
            raise UserError("EmptyData", f"{where} holds no rows; add rows or remove the source")

    def _tokenised(self, batches: Iterator[list[Rendered]]) -> Iterator[tuple[list[Rendered], Rows]]:
        for batch in batches:
            yield batch, tokenise([row.supervision for row in batch], self._recipe.tokenizer)

    def _valid(self, one: Opened) -> Iterator[Rendered]:
        """Rows that can be trained on; others end the preparation, or are counted. Runs beside `_keep`."""
        format_name: str = "" if one.source.format == "Auto" else one.source.format
        decides = self._decides_by_content(one)
        if format_name:
            _check_columns(one, format_name)
        for row in islice(one.rows(), one.source.max_rows):
            self._counts.read += 1
            try:
                if row.error is not None:
                    raise row.error
                if not format_name:
                    format_name = _detected(one, row)
                conversation = formats.conversation(row.value, format_name, one.source.columns)
                words = content.fingerprint(conversation) if decides else b""
                if self._is_duplicate(conversation, words):
                    continue
                supervision = supervise(conversation, self._recipe.template, self._recipe.data.loss_on)
            except RowError as exc:
                self._invalid(row, exc)
                continue
            yield Rendered(row.place, supervision, words)
        self._counts.by_source[one.label] = {"name": one.source.name, "format": format_name}

    def _invalid(self, row: SourceRow, error: RowError) -> None:
        if self._recipe.data.on_invalid_row == "Fail":
            fix = f"fix the {row.place.unit} or set data.onInvalidRow: Skip"
            raise UserError(error.reason, f"{row.place}: {error}; {fix}") from error
        self._counts.skipped += 1
        if self._counts.skipped <= _LOGGED_SKIPS:
            self._counts.skipped_first.append(f"{row.place}: {error}")
            logger.warning("skipped %s: %s", row.place, error)

    def _keep(self, one: Opened, batch: Sequence[Rendered], rows: Rows) -> None:
        counts, data, lengths = self._counts, self._recipe.data, rows.lengths
        counts.longest = max(counts.longest, int(lengths.max(initial=0)))
        counts.whole.extend(lengths.tolist())
        is_short, is_long = lengths < (data.min_length or 0), lengths > data.max_length
        if data.on_too_long == "Fail" and is_long.any():
            self._refuse_long(batch, lengths)
        supervised = rows.supervised(data.max_length)
        is_left = ~is_short & (supervised > 0) & ~(is_long & (data.on_too_long == "Drop"))
        counts.short += int(is_short.sum())
        counts.dropped += int((~is_short & ~is_left).sum())
        counts.truncated += int((is_long & is_left).sum())
        is_held_out = is_left & self._held_out(one, batch)
        counts.eval_rows += int(is_held_out.sum())
        self._writer.add("eval", rows.take(np.flatnonzero(is_held_out), data.max_length))
        times = np.where(is_left & ~is_held_out, self._repeats(one, batch), 0)
        if self._split_percent is not None and not one.is_held_out:
            self._likeliest.add([row.fingerprint for row in batch], times)
        counts.supervised += int((supervised * times).sum())
        for some in np.array_split(np.arange(len(rows)), math.ceil(one.source.weight)):  # bounds the memory
            kept = rows.take(np.repeat(some, times[some]), data.max_length)
            self._writer.add("train", kept)
            self._lengths.extend(kept.lengths.tolist())
            counts.tokens += len(kept.ids)

    def _refuse_long(self, batch: Sequence[Rendered], lengths: npt.NDArray[np.int64]) -> None:
        limit = self._recipe.data.max_length
        row = int(np.argmax(lengths > limit))
        raise UserError(
            "RowTooLong",
            f"{batch[row].place}: {lengths[row]} tokens, data.maxLength is {limit}; "
            "shorten the row, raise data.maxLength, or set data.onTooLong: Truncate or Drop",
        )

    def _held_out(self, one: Opened, batch: Sequence[Rendered]) -> npt.NDArray[np.bool_]:
        """Which rows are for evaluation."""
        percent = self._split_percent
        if one.is_held_out or percent is None:
            return np.full(len(batch), one.is_held_out)
        return np.fromiter((content.is_held_out(row.fingerprint, percent) for row in batch), bool, len(batch))

    def _repeats(self, one: Opened, batch: Sequence[Rendered]) -> npt.NDArray[np.int64]:
        """How often an epoch has each row."""
        weight = one.source.weight
        if weight == int(weight):
            return np.full(len(batch), int(weight))
        return np.fromiter((content.repeats(row.fingerprint, weight) for row in batch), np.int64, len(batch))

    def _decides_by_content(self, one: Opened) -> bool:
        is_fraction = one.source.weight != int(one.source.weight)
        return self._split_percent is not None or self._recipe.data.deduplicate != "None" or is_fraction

    def _is_duplicate(self, conversation: Conversation, words: bytes) -> bool:
        if self._recipe.data.deduplicate == "None":
            return False
        is_known = not self._seen.add(content.identity(conversation, words))
        self._counts.duplicates += is_known
        return is_known

    def _check_vocabulary(self, batch: Sequence[Rendered], rows: Rows) -> None:
        size = self._recipe.vocabulary_size
        if rows.ids.max(initial=0) < size:
            return
        token = int(np.argmax(rows.ids >= size))
        row = int(np.searchsorted(rows.starts, token, side="right")) - 1
        raise UserError(
            "TokenizerMismatch",
            f"{batch[row].place}: token {rows.ids[token]} is outside the model's vocabulary of "
            f"{size}; the tokenizer in the folder belongs to another model",
        )

    def _log(self, total: int | None) -> None:
        if time.monotonic() - self._logged >= _LOG_SECONDS:
            self._logged = time.monotonic()
            of = f" of {total:,}" if total is not None else ""
            logger.info("tokenised %s%s rows", f"{self._counts.read:,}", of)


def _batches(rows: Iterator[Rendered]) -> Iterator[list[Rendered]]:
    """Rows in batches. An error comes behind the rows before it, so that the first in the file is told."""
    batch: list[Rendered] = []
    characters = 0
    try:
        for row in rows:
            batch.append(row)
            characters += len(row.supervision.text)
            if len(batch) >= _BATCH_ROWS or characters >= _BATCH_CHARACTERS:
                yield batch
                batch, characters = [], 0
    except UserError:
        yield batch
        raise
    yield batch


def _detected(one: Opened, row: SourceRow) -> str:
    if not isinstance(row.value, dict):
        raise RowError("expected an object with columns")
    try:
        name = formats.detect(row.value, one.source.columns)
    except FormatError as exc:
        raise UserError("UnknownFormat", f"{one.field}: {row.place}: {exc}") from exc
    logger.info("%s: format %s", one.label, name)
    _check_columns(one, name)
    return name


def _check_columns(one: Opened, format_name: str) -> None:
    try:
        formats.check_columns(format_name, one.source.columns)
    except FormatError as exc:
        raise UserError("UnknownFormat", f"{one.field}: {exc}") from exc


def _total_rows(opened: Sequence[Opened]) -> int | None:
    counts = [one.count() for one in opened]
    return None if None in counts else sum(count or 0 for count in counts)
