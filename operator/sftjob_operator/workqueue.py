"""The work queue: which SFTJob is looked at next. Keyed, deduplicating, delaying, with back-off per key.

Everything that happens ends in `add(key)`, so a thousand watch events cost one pass. The same key is never
handed out twice at a time: what is added meanwhile runs once more afterwards. Keys that are due stand in lines, which
take turns: a tenant with a thousand keys delays another's first by one pass. It knows nothing of Kubernetes.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import itertools
from collections import deque
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)


class WorkQueue(Generic[K]):
    """Keys with due times. All times are seconds; `clock` is monotonic (default: the running loop's)."""

    def __init__(
        self,
        *,
        backoff_seconds: float = 0.5,
        backoff_limit_seconds: float = 60.0,
        clock: Callable[[], float] | None = None,
        line: Callable[[K], Hashable] = lambda _: None,
    ) -> None:
        """A failed key comes back after backoff_seconds * 2^failures, at most backoff_limit_seconds.

        `line` says in which line a key stands; default: all in one.
        """
        self._backoff, self._backoff_limit = backoff_seconds, backoff_limit_seconds
        self._clock, self._line = clock, line
        self._due: dict[K, float] = {}
        self._heap: list[tuple[float, int, K]] = []  # entries that disagree with _due are stale and skipped
        self._lines: dict[Hashable, deque[K]] = {}  # what is due, the line whose turn it is first
        self._standing: set[K] = set()  # in some line
        self._order = itertools.count()  # equal due times leave in the order they came
        self._active: dict[K, float | None] = {}  # value: when to run again, added while it was running
        self._failures: dict[K, int] = {}
        self._resting: dict[K, float] = {}  # keys that have failed, and when their back-off ends
        self._changed = asyncio.Event()  # pulsed: wakes whoever waits at that moment

    def add(self, key: K, after: float = 0.0) -> None:
        """Look at `key` in `after` seconds, or when its back-off ends; the earliest of several times holds."""
        due = max(self._now() + max(after, 0.0), self._resting.get(key, 0.0))
        if key in self._active:
            again = self._active[key]
            self._active[key] = due if again is None else min(again, due)
            return
        if key in self._due and self._due[key] <= due:
            return
        self._due[key] = due
        heapq.heappush(self._heap, (due, next(self._order), key))
        self._changed.set()
        self._changed.clear()

    async def get(self) -> K:
        """The key that has been due for longest in the line whose turn it is; it is active until `done`."""
        while True:
            self._form_lines()
            if self._lines:
                key = self._next_in_line()
                del self._due[key]
                self._active[key] = None
                return key
            await self._changed_within(self._heap[0][0] - self._now() if self._heap else None)

    def done(self, key: K, *, failed: bool = False) -> None:
        """The pass is over. Success forgets earlier failures; failure adds the key after its back-off, and not
        before: its own writes come back as events, and would make a failing key spin.
        """
        again = self._active.pop(key)
        if failed:
            failures = self._failures.get(key, 0)
            self._failures[key] = failures + 1
            pause = min(self._backoff * 2.0 ** min(failures, 32), self._backoff_limit)
            self._resting[key] = again = self._now() + pause
        else:
            self._failures.pop(key, None)
            self._resting.pop(key, None)
        if again is not None:
            self.add(key, again - self._now())

    def failures(self, key: K) -> int:
        """Failed passes of `key` since its last success."""
        return self._failures.get(key, 0)

    @property
    def depth(self) -> int:
        """Keys that are due and wait for a worker."""
        now = self._now()
        return sum(due <= now for due in self._due.values())

    @property
    def oldest_seconds(self) -> float:
        """How long the first of them has been waiting; 0 when none is due."""
        self._form_lines()
        since = min((self._due[line[0]] for line in self._lines.values()), default=self._now())
        return self._now() - since

    def _now(self) -> float:
        return self._clock() if self._clock else asyncio.get_running_loop().time()

    def _form_lines(self) -> None:
        """Put what has become due at the end of its line: there it stays, for nothing could make it due earlier."""
        now = self._now()
        while self._heap and self._heap[0][0] <= now:
            due, _, key = heapq.heappop(self._heap)
            if self._due.get(key) == due and key not in self._standing:
                self._standing.add(key)
                self._lines.setdefault(self._line(key), deque()).append(key)

    def _next_in_line(self) -> K:
        line, keys = next(iter(self._lines.items()))
        del self._lines[line]
        key = keys.popleft()
        self._standing.discard(key)
        if keys:
            self._lines[line] = keys  # the others come first now
        return key

    async def _changed_within(self, seconds: float | None) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._changed.wait()
