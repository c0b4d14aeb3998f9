"""The next piece of work is made while the present one is used."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def ahead(items: Iterator[T], name: str = "ahead") -> Generator[T, None, None]:
    """The same items in the same order, each made in a thread of this name while the caller works on the one before.

    What making an item raises is raised where the item would have come. When the caller leaves, the thread ends with
    the item it is at. It pays where the caller's work is outside Python, as the tokenizer's is.
    """
    with ThreadPoolExecutor(1, name) as thread:
        end = object()
        coming = thread.submit(next, items, end)
        while (item := coming.result()) is not end:
            coming = thread.submit(next, items, end)
            yield item  # type: ignore[misc]
