"""Rendered conversations become token ids and supervised token spans, many rows at once."""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import chain
from unicodedata import is_normalized

import numpy as np
import numpy.typing as npt
from tokenizers import Encoding

from sft_trainer.data.bytewise import Sizes
from sft_trainer.data.rows import Rows
from sft_trainer.data.supervision import Supervision
from sft_trainer.data.template import Span
from sft_trainer.data.tokenizer import Tokenizer

_Counts = npt.NDArray[np.int64]


def tokenise(rows: Sequence[Supervision], tokenizer: Tokenizer) -> Rows:
    """Tokens of every row, whole; rows are encoded together because the tokenizer uses all cores then."""
    numbers = np.fromiter((len(row.spans) for row in rows), np.int64, len(rows))
    span_rows = np.repeat(np.arange(len(rows)), numbers)
    if tokenizer.sizes is None:
        encoded = tokenizer.encode([row.text for row in rows])
        ids, starts = _flat([one.ids for one in encoded])
        spans = np.array(list(chain.from_iterable(map(_by_offsets, rows, encoded))), np.int64).reshape(-1, 2)
    else:
        ids, starts = _flat(tokenizer.ids([row.text for row in rows]))
        spans, is_certain = _by_sizes(rows, tokenizer.sizes[ids], starts, span_rows)
        for row in np.flatnonzero(~is_certain).tolist():
            (one,) = tokenizer.encode([rows[row].text])
            spans[span_rows == row] = np.array(list(_by_offsets(rows[row], one))).reshape(-1, 2)
    spans[:, 0] = np.maximum(spans[:, 0], 1)  # nothing predicts the first token of a row
    weights = np.fromiter(chain.from_iterable(map(_weights, rows)), np.float32, len(span_rows))
    is_left = spans[:, 0] < spans[:, 1]
    return Rows(ids, starts, spans[is_left].astype(np.int32), weights[is_left], span_rows[is_left])


def _flat(ids: Sequence[list[int]]) -> tuple[npt.NDArray[np.int32], _Counts]:
    """All `ids` end to end, and where each of them starts."""
    flat = array("i")
    for one in ids:
        flat.fromlist(one)  # takes a third of what numpy does to read a list
    return np.frombuffer(flat, np.int32), np.cumsum([0, *map(len, ids)])


def _weights(row: Supervision) -> Sequence[float]:
    return (1.0,) * len(row.spans) if row.weights is None else row.weights


# ------------------------------------------------------------------ where the tokens' sizes are known


def _by_sizes(
    rows: Sequence[Supervision], sizes: Sizes, starts: _Counts, span_rows: _Counts
) -> tuple[_Counts, npt.NDArray[np.bool_]]:
    """First token and the one behind the last of every span, and of which rows this is certain."""
    begins = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])  # bytes of all rows before each token
    first, numbers = begins[starts], np.bincount(span_rows, minlength=len(rows))
    places = np.fromiter(chain.from_iterable(map(_bytes, rows)), np.int64, 2 * len(span_rows) + len(rows))
    ends = np.cumsum(2 * numbers + 1) - 1
    is_certain = np.diff(first) == places[ends]
    is_certain &= np.fromiter((is_normalized("NFC", row.text) for row in rows), bool, len(rows))
    positions = np.delete(places, ends).reshape(-1, 2) + first[span_rows][:, None]
    found = np.searchsorted(begins, positions)
    for span in np.flatnonzero(begins[np.minimum(found[:, 0], len(sizes))] != positions[:, 0]):
        row, token = span_rows[span], found[span, 0] - 1
        if is_certain[row]:  # the place is within a token: it is the answer's if it only takes blanks along
            before = slice(begins[token] - first[row], positions[span, 0] - first[row])
            found[span, 0] -= rows[row].text.encode()[before].decode(errors="replace").isspace()
    return found - starts[span_rows][:, None], is_certain


def _bytes(row: Supervision) -> Iterator[int]:
    """Where the spans begin and end in the text as UTF-8, and the size of it."""
    edges = (*chain.from_iterable(row.spans), len(row.text))
    if row.text.isascii():
        yield from edges
        return
    size, before = 0, 0
    for edge in edges:
        size, before = size + len(row.text[before:edge].encode()), edge
        yield size


# ------------------------------------------------------------------ where only the tokenizer knows


def _by_offsets(row: Supervision, encoded: Encoding) -> Iterator[tuple[int, int]]:
    for span in row.spans:
        yield _first_token(row.text, span, encoded), _token_from(span.end, encoded)


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
