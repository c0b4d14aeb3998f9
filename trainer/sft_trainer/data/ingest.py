"""One pass over the rows: reads, validates, renders, masks, tokenises, counts and writes them.

Rows stream through in small batches, so memory does not grow with the data. Whatever is wrong with a row is
reported with its place, or counted if the job says `onInvalidRow: Skip`.
"""

from __future__ import annotations

import logging
import time
from array import array
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sft_trainer.config import DataConfig
from sft_trainer.data import cache, content, formats
from sft_trainer.data.ahead import Ahead
from sft_trainer.data.formats import Conversation, FormatError, RowError
from sft_trainer.data.sources import Opened, Place, SourceRow
from sft_trainer.data.supervision import Supervision, supervise
from sft_trainer.data.template import ChatTemplate
from sft_trainer.data.tokenise import Tokens, tokenise
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


@dataclass
class Counts:
    """What happened to the rows of all splits, and the tokens of the training rows."""

    rows: int = 0
    eval_rows: int = 0
    tokens: int = 0
    supervised: int = 0
    truncated: int = 0
    dropped: int = 0
    skipped: int = 0
    duplicates: int = 0
    longest: int = 0
    read: int = 0
    by_source: dict[str, dict[str, Any]] = field(default_factory=dict)
    skipped_first: list[str] = field(default_factory=list)
    whole: array[int] = field(default_factory=lambda: array("i"))  # tokens of every row before it is cut


class Ingest:
    """One pass over all sources into `directory`."""

    def __init__(self, recipe: Recipe, directory: Path) -> None:
        self._recipe = recipe
        self._directory = directory
        self._writer = cache.Writer(directory)
        self._counts = Counts()
        self._lengths = array("i")
        self._seen: set[bytes] = set()
        self._likeliest_eval: tuple[int, list[range]] = (
            2**64,
            [],
        )  # lowest rank of a training row, its places
        self._logged = time.monotonic()
        self._split_percent = recipe.data.eval.split_percent if recipe.data.eval else None

    def run(self, opened: Sequence[Opened]) -> tuple[Counts, array[int]]:
        """What happened, and the length of every training row. UserError if nothing is left to train on."""
        total = _total_rows(opened)
        for one in opened:
            self._source(one, total)
        self._writer.close()
        self._ensure_eval_row()
        self._refuse_useless()
        return self._counts, self._lengths

    def _source(self, one: Opened, total: int | None) -> None:
        before = self._counts.read
        with closing(Ahead(_batches(self._valid(one)))) as batches:
            for batch in batches:
                tokens = tokenise([row.supervision for row in batch], self._recipe.tokenizer)
                self._check_vocabulary(batch, tokens)
                for row, one_row in zip(batch, tokens, strict=True):
                    self._keep(one, row, one_row)
                self._log(total)
        if self._counts.read == before:
            where = f"{one.field}: {one.source.path}" if one.source.path else f"{one.field}.inline"
            raise UserError("EmptyData", f"{where} holds no rows; add rows or remove the source")

    def _valid(self, one: Opened) -> Iterator[Rendered]:
        """Rows that can be trained on; others end the preparation, or are counted. Runs beside `_keep`."""
        format_name: str = "" if one.source.format == "Auto" else one.source.format
        decides = self._decides_by_content(one)
        for row in islice(one.rows(), one.source.max_rows):
            self._counts.read += 1
            try:
                if row.error is not None:
                    raise row.error
                if not format_name:
                    format_name = _detected(one, row)
                conversation = self._conversation(one, row, format_name)
                words = content.fingerprint(conversation) if decides else b""
                if self._is_duplicate(conversation, words):
                    continue
                supervision = supervise(conversation, self._recipe.template, self._recipe.data.loss_on)
            except RowError as exc:
                self._invalid(row, exc)
                continue
            yield Rendered(row.place, supervision, words)
        self._counts.by_source[one.label] = {"name": one.source.name, "format": format_name}

    def _conversation(self, one: Opened, row: SourceRow, format_name: str) -> Conversation:
        try:
            formats.check_columns(format_name, one.source.columns)
        except FormatError as exc:
            raise UserError("UnknownFormat", f"{one.field}: {exc}") from exc
        return formats.conversation(row.value, format_name, one.source.columns)

    def _invalid(self, row: SourceRow, error: RowError) -> None:
        if self._recipe.data.on_invalid_row == "Fail":
            fix = f"fix the {row.place.unit} or set data.onInvalidRow: Skip"
            raise UserError(error.reason, f"{row.place}: {error}; {fix}") from error
        self._counts.skipped += 1
        if self._counts.skipped <= _LOGGED_SKIPS:
            self._counts.skipped_first.append(f"{row.place}: {error}")
            logger.warning("skipped %s: %s", row.place, error)

    def _keep(self, one: Opened, row: Rendered, tokens: Tokens) -> None:
        counts, data = self._counts, self._recipe.data
        counts.longest = max(counts.longest, len(tokens.ids))
        counts.whole.append(len(tokens.ids))
        kept = tokens
        if len(tokens.ids) > data.max_length:
            if data.on_too_long == "Fail":
                raise UserError(
                    "RowTooLong",
                    f"{row.place}: {len(tokens.ids)} tokens, data.maxLength is {data.max_length}; "
                    "shorten the row, raise data.maxLength, or set data.onTooLong: Truncate or Drop",
                )
            kept = tokens.cut(data.max_length if data.on_too_long == "Truncate" else 0)
        if not kept.supervised:
            counts.dropped += 1
            return
        counts.truncated += kept is not tokens
        if one.label.startswith("eval") or self._is_held_out(row):
            counts.eval_rows += 1
            self._writer.add("eval", kept)
            return
        times = content.repeats(row.fingerprint, one.source.weight)
        if self._split_percent is not None:
            self._remember(row, range(len(self._lengths), len(self._lengths) + times))
        for _ in range(times):
            self._writer.add("train", kept)
        self._lengths.extend([len(kept.ids)] * times)
        counts.tokens += len(kept.ids) * times
        counts.supervised += kept.supervised * times

    def _decides_by_content(self, one: Opened) -> bool:
        is_fraction = one.source.weight != int(one.source.weight)
        return self._split_percent is not None or self._recipe.data.deduplicate != "None" or is_fraction

    def _is_duplicate(self, conversation: Conversation, words: bytes) -> bool:
        if self._recipe.data.deduplicate == "None":
            return False
        identity = content.identity(conversation, words)
        is_known = identity in self._seen
        self._seen.add(identity)
        self._counts.duplicates += is_known
        return is_known

    def _is_held_out(self, row: Rendered) -> bool:
        return self._split_percent is not None and content.is_held_out(row.fingerprint, self._split_percent)

    def _remember(self, row: Rendered, places: range) -> None:
        """Where in the training rows those stand that are nearest to being held out."""
        rank = content.rank(row.fingerprint)
        if rank < self._likeliest_eval[0]:
            self._likeliest_eval = (rank, [])
        if rank == self._likeliest_eval[0] and places:
            self._likeliest_eval[1].append(places)

    def _ensure_eval_row(self) -> None:
        """Of a few rows a small percentage may be none: then the likeliest is held out, with all its doubles."""
        _, places = self._likeliest_eval
        gone = {index for one in places for index in one}
        if self._split_percent is None or self._counts.eval_rows or len(gone) == len(self._lengths):
            return
        cache.move_to_eval(self._directory, [one[0] for one in places], gone)
        held_out = cache.Split(self._directory / "eval.arrow")
        for index, one in enumerate(places):
            tokens, weights = held_out.row(index)
            self._counts.tokens -= len(tokens) * len(one)
            self._counts.supervised -= int(np.count_nonzero(weights)) * len(one)
        self._lengths = array("i", (n for index, n in enumerate(self._lengths) if index not in gone))
        self._counts.eval_rows = len(places)

    def _refuse_useless(self) -> None:
        counts, data = self._counts, self._recipe.data
        if self._lengths:
            return
        if counts.skipped == counts.read:
            raise UserError(
                "EmptyData", f"all {counts.read} rows are invalid; the first: {counts.skipped_first[0]}"
            )
        if counts.eval_rows:
            raise UserError(
                "EmptyData", "no row is left to train on: all are held out by data.eval; add rows"
            )
        if counts.read > counts.skipped + counts.dropped + counts.duplicates:
            raise UserError(
                "EmptyData",
                "no row is left to train on: weights below 1 leave all out; raise weight, or add rows",
            )
        raise UserError(
            "NoSupervisedTokens",
            f"no row has a supervised token: of {counts.read} rows {counts.dropped} were dropped "
            f"(data.maxLength {data.max_length}, longest row {counts.longest} tokens, "
            f"data.lossOn {data.loss_on}); raise data.maxLength or check which answers carry loss",
        )

    def _check_vocabulary(self, batch: Sequence[Rendered], tokens: Sequence[Tokens]) -> None:
        size = self._recipe.vocabulary_size
        if not batch or np.concatenate([one.ids for one in tokens]).max(initial=0) < size:
            return
        row, largest = next(
            (r, t.ids.max()) for r, t in zip(batch, tokens, strict=True) if max(t.ids) >= size
        )
        raise UserError(
            "TokenizerMismatch",
            f"{row.place}: token {largest} is outside the model's vocabulary of "
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
    return name


def _total_rows(opened: Sequence[Opened]) -> int | None:
    counts = [one.count() for one in opened]
    return None if None in counts else sum(count or 0 for count in counts)
