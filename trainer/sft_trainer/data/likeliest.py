"""Of a few rows a small percentage may be none: then the row that is likeliest to be held out is, with all its doubles."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from sft_trainer.data import cache, content
from sft_trainer.data.counts import Counts


class Likeliest:
    """Where in the training rows those stand that are nearest to being held out."""

    def __init__(self) -> None:
        self._rank = 2**64
        self._places: list[range] = []
        self._rows = 0

    def add(self, fingerprints: Sequence[bytes], times: npt.NDArray[np.int64]) -> None:
        """Rows in the order in which they are written, each as often as `times` says."""
        for fingerprint, number in zip(fingerprints, times.tolist(), strict=True):
            rank = content.rank(fingerprint)
            if number and rank <= self._rank:
                if rank < self._rank:
                    self._rank, self._places = rank, []
                self._places.append(range(self._rows, self._rows + number))
            self._rows += number

    def hold_out(self, directory: Path, counts: Counts, lengths: array[int]) -> array[int]:
        """Moves them to the evaluation, unless nothing else is left; the lengths of the training rows then."""
        gone = {index for one in self._places for index in one}
        if len(gone) == len(lengths):
            return lengths
        cache.move_to_eval(directory, [one[0] for one in self._places], gone)
        held_out = cache.Split(directory / "eval.arrow")
        for index, one in enumerate(self._places):
            tokens, weights = held_out.row(index)
            counts.tokens -= len(tokens) * len(one)
            counts.supervised -= int(np.count_nonzero(weights)) * len(one)
        counts.eval_rows = len(self._places)
        return array("i", (n for index, n in enumerate(lengths) if index not in gone))
