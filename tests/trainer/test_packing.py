"""Packs: no row lost, none too long, the same on every rank, nearly full."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sft_trainer.data.packing import count, fill_percent, pack

LENGTHS = st.lists(st.integers(1, 64), max_size=200)


@given(LENGTHS, st.integers(-(2**40), 2**40), st.integers(0, 9))
def test_every_row_is_in_exactly_one_pack_and_every_pack_fits(
    lengths: list[int], seed: int, epoch: int
) -> None:
    packs = pack(lengths, 64, seed, epoch)
    assert sorted(row for rows in packs for row in rows) == list(range(len(lengths)))
    assert all(rows and sum(lengths[row] for row in rows) <= 64 for rows in packs)


@given(LENGTHS, st.integers(0, 99), st.integers(0, 99))
def test_the_number_of_packs_is_the_same_in_every_epoch(lengths: list[int], one: int, other: int) -> None:
    assert len(pack(lengths, 64, one, 0)) == len(pack(lengths, 64, other, 5))


@given(LENGTHS)
def test_packs_are_counted_without_making_them(lengths: list[int]) -> None:
    assert count(lengths, 64) == len(pack(lengths, 64, 0, 0))


@given(LENGTHS)
def test_no_two_packs_could_have_been_one(lengths: list[int]) -> None:
    sums = sorted(sum(lengths[row] for row in rows) for rows in pack(lengths, 64, 1, 0))
    assert len(sums) < 2 or sums[0] + sums[1] > 64


def test_the_order_follows_from_seed_and_epoch_alone() -> None:
    lengths = np.random.default_rng(0).integers(1, 500, 300)
    assert pack(lengths, 512, 7, 1) == pack(lengths.tolist(), 512, 7, 1)
    assert pack(lengths, 512, 7, 1) != pack(lengths, 512, 7, 2)
    assert pack(lengths, 512, 7, 1) != pack(lengths, 512, 8, 1)


def test_chat_like_lengths_are_packed_nearly_full() -> None:
    lengths = np.random.default_rng(0).lognormal(5.2, 0.7, 5000).clip(10, 2048).astype(int)
    assert fill_percent(lengths, len(pack(lengths, 2048, 1, 0)), 2048) >= 99


def test_a_row_longer_than_a_pack_is_refused() -> None:
    with pytest.raises(ValueError, match="a row of 65 tokens does not fit into 64"):
        pack([3, 65], 64, 0, 0)


def test_nothing_makes_no_packs() -> None:
    assert pack([], 64, 0, 0) == []
    assert fill_percent([], 0, 64) == 0
