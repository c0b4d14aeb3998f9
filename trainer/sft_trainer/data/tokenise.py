"""Rendered conversations become token ids and supervised token spans, cut to the longest length allowed."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

from sft_trainer.data.masking import Supervision
from sft_trainer.data.template import Span
from sft_trainer.data.tokenizer import Encoded, Tokenizer


@dataclass(frozen=True, slots=True)
class Tokens:
    """One row. `spans` are start and end (exclusive) of supervised tokens, ascending and apart."""

    ids: list[int]
    spans: tuple[tuple[int, int], ...]

    @property
    def supervised(self) -> int:
        """Number of tokens that carry loss."""
        return sum(end - start for start, end in self.spans)

    def cut(self, length: int) -> Tokens:
        """The first `length` tokens."""
        spans = [(start, min(end, length)) for start, end in self.spans if start < length]
        return Tokens(self.ids[:length], tuple(spans))


def tokenise(rows: Sequence[Supervision], tokenizer: Tokenizer) -> list[Tokens]:
    """Tokens of every row, whole; rows are encoded together because the tokenizer uses all cores then."""
    encoded = tokenizer.encode([row.text for row in rows])
    return [Tokens(one.ids, _token_spans(row, one)) for row, one in zip(rows, encoded, strict=True)]


def _token_spans(row: Supervision, encoded: Encoded) -> tuple[tuple[int, int], ...]:
    spans = []
    for span in row.spans:
        start, end = _first_token(row.text, span, encoded), bisect_left(encoded.starts, span.end)
        start = max(start, 1)  # nothing predicts the first token of a row, so it never carries loss
        if start < end:
            spans.append((start, end))
    return tuple(spans)


def _first_token(text: str, span: Span, encoded: Encoded) -> int:
    """The token that begins at the span, or the one before if it only takes white space along.

    SentencePiece glues the blank before a word to it: that token is the answer's first.
    """
    first = bisect_left(encoded.starts, span.start)
    before = first - 1
    straddles = before >= 0 and encoded.ends[before] > span.start
    if straddles and text[encoded.starts[before] : span.start].isspace():
        return before
    return first
