"""Rows of tokens end to end in flat arrays, as the cache keeps them: nothing here is done row by row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Integers = npt.NDArray[np.integer[Any]]


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """Token ids of many rows, and the spans of them that carry loss."""

    ids: npt.NDArray[np.int32]
    """[tokens]"""
    starts: npt.NDArray[np.int64]
    """[rows + 1]; row i is `ids[starts[i]:starts[i + 1]]`."""
    spans: npt.NDArray[np.int32]
    """[spans, 2]: first token and the one behind the last, counted within the row; ascending and apart."""
    weights: npt.NDArray[np.float32]
    """[spans], above 0."""
    span_rows: npt.NDArray[np.int64]
    """[spans]: the row of each, ascending."""

    def __len__(self) -> int:
        return len(self.starts) - 1

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Tokens of every row."""
        return np.diff(self.starts)

    def supervised(self, limit: int) -> npt.NDArray[np.int64]:
        """How many of the first `limit` tokens of every row carry loss."""
        sizes = np.diff(np.minimum(self.spans, limit), axis=1)[:, 0]
        return np.bincount(self.span_rows, sizes, minlength=len(self)).astype(np.int64)

    def take(self, rows: Integers, limit: int) -> Rows:
        """`rows` in this order, as often as they are named, and of each its first `limit` tokens."""
        lengths = self.lengths
        if len(rows) == len(self) and lengths.max(initial=0) <= limit and (np.diff(rows) == 1).all():
            return self
        kept = np.minimum(lengths[rows], limit)
        first = np.searchsorted(self.span_rows, np.arange(len(self) + 1))
        numbers = np.diff(first)[rows]
        chosen = _places(first[rows], numbers)
        spans, span_rows = np.minimum(self.spans[chosen], limit), np.repeat(np.arange(len(rows)), numbers)
        is_left = spans[:, 0] < spans[:, 1]
        return Rows(
            self.ids[_places(self.starts[rows], kept)],
            np.concatenate([[0], np.cumsum(kept)]),
            spans[is_left],
            self.weights[chosen][is_left],
            span_rows[is_left],
        )


def joined(parts: Sequence[Rows]) -> Rows:
    """All rows of `parts`, one after another."""
    tokens = np.cumsum([0, *(len(part.ids) for part in parts)])
    before = np.cumsum([0, *(len(part) for part in parts)])
    ends = [part.starts[1:] + shift for part, shift in zip(parts, tokens, strict=False)]
    return Rows(
        np.concatenate([part.ids for part in parts]),
        np.concatenate([np.zeros(1, np.int64), *ends]),
        np.concatenate([part.spans for part in parts]),
        np.concatenate([part.weights for part in parts]),
        np.concatenate([part.span_rows + shift for part, shift in zip(parts, before, strict=False)]),
    )


def _places(starts: Integers, numbers: Integers) -> npt.NDArray[np.int64]:
    """`numbers[0]` whole numbers from `starts[0]` on, then those of the next."""
    ends = np.cumsum(numbers)
    places: npt.NDArray[np.int64] = np.repeat(starts - (ends - numbers), numbers)
    return places + np.arange(len(places))
