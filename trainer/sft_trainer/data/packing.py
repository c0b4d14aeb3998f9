"""Which rows share a sequence: best-fit decreasing, per epoch, without dropping or doubling a row.

Only lengths are looked at, so the plan of an epoch takes seconds for millions of rows and no token is read.
The number of sequences is the same for every seed and epoch: rows of equal length and gaps of equal size are
interchangeable, and only the choice among them, and the order of the sequences, is random.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Lengths = npt.NDArray[np.integer[Any]] | Sequence[int]


def pack(lengths: Lengths, max_length: int, seed: int, epoch: int) -> list[list[int]]:
    """Rows grouped into sequences of at most `max_length` tokens, shuffled.

    Every row goes into the fullest sequence that still has room for it, longest row first. ValueError if
    a row is longer than `max_length`. O(n log n) in rows, up to moving at most `max_length` words per
    row.
    """
    sizes = np.asarray(lengths, dtype=np.int64)
    if sizes.size and int(sizes.max()) > max_length:
        raise ValueError(f"a row of {int(sizes.max())} tokens does not fit into {max_length}")
    generator = _generator(seed, epoch)
    shuffled = generator.permutation(sizes.size)
    order = shuffled[np.argsort(-sizes[shuffled], kind="stable")]
    packs = _best_fit(order.tolist(), sizes.tolist(), max_length, generator)
    return [packs[index] for index in generator.permutation(len(packs))]


def _best_fit(
    order: list[int], sizes: list[int], max_length: int, generator: np.random.Generator
) -> list[list[int]]:
    """Sequences opened so far are kept by their gap: `gaps` sorted, `open_packs[gap]` a list of them."""
    packs: list[list[int]] = []
    gaps: list[int] = []
    open_packs: dict[int, list[int]] = {}
    choices = generator.random(len(order)).tolist()
    for row, choice in zip(order, choices, strict=True):
        size = sizes[row]
        position = bisect_left(gaps, size)
        if position == len(gaps):
            packs.append([row])
            pack_index, gap = len(packs) - 1, max_length - size
        else:
            candidates = open_packs[gaps[position]]
            chosen = int(choice * len(candidates))
            candidates[chosen], candidates[-1] = candidates[-1], candidates[chosen]
            pack_index, gap = candidates.pop(), gaps[position] - size
            packs[pack_index].append(row)
            if not candidates:
                del open_packs[gaps.pop(position)]
        if gap > 0:
            if gap not in open_packs:
                insort(gaps, gap)
                open_packs[gap] = []
            open_packs[gap].append(pack_index)
    return packs


def count(lengths: Lengths, max_length: int) -> int:
    """The number of sequences that `pack` makes, without making them: by how many rows there are of each length.

    The rows of one length that the fullest gap has room for go into it one after another, for what they
    leave is fuller still.
    """
    gaps: list[int] = []
    open_packs: dict[int, int] = {}
    packs = 0

    def leave(gap: int, number: int) -> None:
        if gap > 0 and number > 0:
            if gap not in open_packs:
                insort(gaps, gap)
            open_packs[gap] = open_packs.get(gap, 0) + number

    sizes, numbers = np.unique(np.asarray(lengths, dtype=np.int64), return_counts=True)
    for size, number in zip(sizes[::-1].tolist(), numbers[::-1].tolist(), strict=True):
        while number > 0:
            position = bisect_left(gaps, size)
            if position < len(gaps):
                gap = gaps[position]
                room, available = gap // size, open_packs[gap]
            else:
                gap, room = max_length, max_length // size
                available = -(-number // room)
                packs += available
            filled = min(number // room, available)
            rest = min(number - filled * room, room - 1) if filled < available else 0
            if position < len(gaps):
                open_packs[gap] -= filled + (rest > 0)
                if not open_packs[gap]:
                    del open_packs[gaps.pop(position)]
            leave(gap - room * size, filled)
            leave(gap - rest * size, int(rest > 0))
            number -= filled * room + rest
    return packs


def fill_percent(lengths: Lengths, packs: int, max_length: int) -> int:
    """Share of `packs` sequences of `max_length` tokens that is not padding, rounded down."""
    return int(100 * int(np.sum(lengths)) // max(1, packs * max_length))


def _generator(seed: int, epoch: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64([seed % 2**63, epoch]))
