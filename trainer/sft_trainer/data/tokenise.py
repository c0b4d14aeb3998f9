"""Rendered conversations become token ids and supervised token spans, cut to the longest length allowed."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, chain, pairwise

import numpy as np
import numpy.typing as npt
from tokenizers import Encoding

from sft_trainer.data.supervision import Supervision
from sft_trainer.data.template import Span
from sft_trainer.data.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True, eq=False)
class Tokens:
    """One row. `spans` are start and end (exclusive) of supervised tokens, ascending and apart."""

    ids: npt.NDArray[np.int32]  # [length]
    spans: tuple[tuple[int, int], ...]
    weights: tuple[float, ...] | None = None  # of the spans, above 0; None: all are 1

    @property
    def supervised(self) -> int:
        """Number of tokens that carry loss."""
        return sum(end - start for start, end in self.spans)

    def cut(self, length: int) -> Tokens:
        """The first `length` tokens."""
        spans = [(start, min(end, length)) for start, end in self.spans if start < length]
        return Tokens(self.ids[:length], tuple(spans), self.weights and self.weights[: len(spans)])


def tokenise(rows: Sequence[Supervision], tokenizer: Tokenizer) -> list[Tokens]:
    """Tokens of every row, whole; rows are encoded together because the tokenizer uses all cores then."""
    encoded = tokenizer.encode([row.text for row in rows])
    edges = list(accumulate(map(len, encoded), initial=0))
    ids = np.fromiter(chain.from_iterable(one.ids for one in encoded), np.int32, edges[-1])
    return [
        _tokens(ids[start:end], row, one)
        for row, one, (start, end) in zip(rows, encoded, pairwise(edges), strict=True)
    ]


def _tokens(ids: npt.NDArray[np.int32], row: Supervision, encoded: Encoding) -> Tokens:
    spans = []
    for span in row.spans:
        # Nothing predicts the first token of a row, so it never carries loss.
        start, end = max(1, _first_token(row.text, span, encoded)), _token_from(span.end, encoded)
        spans.append((start, max(start, end)))
    if row.weights is None:
        return Tokens(ids, tuple(span for span in spans if span[0] < span[1]))
    weighted = [(s, weight) for s, weight in zip(spans, row.weights, strict=True) if s[0] < s[1]]
    return Tokens(ids, tuple(span for span, _ in weighted), tuple(weight for _, weight in weighted))


def _first_token(text: str, span: Span, encoded: Encoding) -> int:
    """The token that begins at the span, or the one before if it only takes white space along.

    SentencePiece glues the blank before a word to it: that token is the answer's first.
    """
    first = _token_from(span.start, encoded)
    if first > 0:
        start, end = _characters(first - 1, encoded)
        if end > span.start and text[start : span.start].isspace():
            return first - 1
    return first


def _token_from(position: int, encoded: Encoding) -> int:
    """The first token that begins at character `position` or behind it.

    All offsets at once as Python objects cost a quarter of what the tokenizer does; one is found in no time.
    """
    token = encoded.char_to_token(position)
    if token is None:  # behind the last token, or a character that the tokenizer leaves out
        if len(encoded) == 0 or _characters(len(encoded) - 1, encoded)[1] <= position:
            return len(encoded)
        return bisect_left(encoded.offsets, position, key=lambda characters: characters[0])
    while token < len(encoded) and _characters(token, encoded)[0] < position:
        token += 1
    while token > 0 and _characters(token - 1, encoded)[0] >= position:
        token -= 1
    return token


def _characters(token: int, encoded: Encoding) -> tuple[int, int]:
    found = encoded.token_to_chars(token)
    assert found is not None  # only of a token that is none
    return found
