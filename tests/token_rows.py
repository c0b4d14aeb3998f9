"""Rows of tokens one by one, as tests think of them, and as the arrays that the trainer keeps them in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np

from sft_trainer.data.rows import Rows


@dataclass(frozen=True)
class Tokens:
    """One row: its ids, the spans of them that carry loss, and the weight of each span (None: all 1)."""

    ids: Sequence[int]
    spans: tuple[tuple[int, int], ...]
    weights: tuple[float, ...] | None = None

    @property
    def supervised(self) -> int:
        return sum(end - start for start, end in self.spans)


def together(rows: Sequence[Tokens]) -> Rows:
    """The same rows end to end."""
    return Rows(
        np.array([token for row in rows for token in row.ids], np.int32),
        np.cumsum([0, *(len(row.ids) for row in rows)]),
        np.array([span for row in rows for span in row.spans], np.int32).reshape(-1, 2),
        np.array([weight for row in rows for weight in row.weights or [1] * len(row.spans)], np.float32),
        np.array([index for index, row in enumerate(rows) for _ in row.spans], np.int64),
    )


def apart(rows: Rows) -> list[Tokens]:
    """The same rows one by one."""
    found = []
    for index in range(len(rows)):
        ids = rows.ids[rows.starts[index] : rows.starts[index + 1]]
        spans = tuple((int(start), int(end)) for start, end in rows.spans[rows.span_rows == index])
        weights = tuple(rows.weights[rows.span_rows == index].tolist())
        found.append(Tokens(ids.tolist(), spans, None if all(one == 1 for one in weights) else weights))
    return found


def supervised(row: Tokens) -> list[int]:
    """The ids that carry loss."""
    return list(chain.from_iterable(row.ids[start:end] for start, end in row.spans))
