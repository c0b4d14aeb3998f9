"""Work made ahead: the same items, and an error where it belongs."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing

import pytest

from sft_trainer.data.ahead import Ahead


def test_items_come_in_order_and_one_is_made_meanwhile() -> None:
    made = [threading.Event() for _ in range(4)]

    def items() -> Iterator[int]:
        for number, event in enumerate(made[:3]):
            event.set()
            yield number
        made[3].set()

    seen = []
    for number in Ahead(items()):
        assert made[number + 1].wait(10)
        seen.append(number)
    assert seen == [0, 1, 2]


def test_the_first_is_begun_before_it_is_asked_for() -> None:
    begun = threading.Event()

    def items() -> Iterator[int]:
        begun.set()
        yield 1

    with closing(Ahead(items())) as numbers:
        assert begun.wait(10)
        assert list(numbers) == [1]
        assert list(numbers) == []


def test_an_error_is_raised_behind_the_items_before_it() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise ValueError("second")

    numbers = Ahead(items())
    assert next(numbers) == 1
    with pytest.raises(ValueError, match="second"):
        next(numbers)


def test_no_thread_is_left_when_the_caller_leaves() -> None:
    for asked in (0, 1, 10):
        with closing(Ahead(iter(range(10)))) as numbers:
            assert [next(numbers) for _ in range(asked)] == list(range(asked))
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("ahead")]
