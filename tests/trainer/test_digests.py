"""The set of digests: what a set says, at a third of its memory."""

from __future__ import annotations

import hashlib
import random
import tracemalloc

from sft_trainer.data.digests import Digests


def digest(number: int) -> bytes:
    return hashlib.sha256(str(number).encode()).digest()[:16]


def test_it_says_what_a_set_says() -> None:
    numbers = random.Random(1)
    ours, theirs = Digests(), set()
    for _ in range(8_000):
        one = digest(numbers.randrange(5_000))
        assert ours.add(one) is (one not in theirs)
        theirs.add(one)
    assert len(ours) == len(theirs) > 3_500


def test_digests_that_belong_in_the_same_place_are_kept_apart() -> None:
    ours = Digests()
    same = [bytes(8) + number.to_bytes(8, "big") for number in range(1, 900)]
    assert all(ours.add(one) for one in same)
    assert not any(ours.add(one) for one in same)


def test_a_digest_takes_no_more_bytes_than_the_documentation_says() -> None:
    rows = 12_500  # just behind a growth, where they are the most
    tracemalloc.start()
    try:
        ours = Digests()
        for number in range(rows):
            ours.add(digest(number))
        held, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 44 * rows
    assert most < 65 * rows
