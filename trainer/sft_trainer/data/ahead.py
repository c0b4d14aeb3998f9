"""The next piece of work is made while the present one is used."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

T = TypeVar("T")


class Ahead(Generic[T]):
    """The same items in the same order, each made in a thread while the caller works on the one before.

    The first is begun at once. What making an item raises is raised where the item would have come. `close`, or the
    end, joins the thread, which ends with the item it is at. It pays where the caller's work is outside Python, as
    the tokenizer's is, or a training step.
    """

    def __init__(self, items: Iterator[T], name: str = "ahead") -> None:
        """`name` is the thread's."""
        self._items, self._thread = items, ThreadPoolExecutor(1, name)
        self._coming: Future[T | None] | None = self._begin()

    def _begin(self) -> Future[T | None]:
        return self._thread.submit(next, self._items, _END)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        if self._coming is None:
            raise StopIteration
        try:
            item = self._coming.result()
        except BaseException:
            self.close()
            raise
        if item is _END:
            self.close()
            raise StopIteration
        self._coming = self._begin()
        return item  # type: ignore[return-value]

    def close(self) -> None:
        """Take no more."""
        self._coming = None
        self._thread.shutdown()


_END = object()
