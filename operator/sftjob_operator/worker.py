"""Workers take keys from the queue and reconcile them; the one place that survives what nobody expected."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import NoReturn

from sftjob_operator.cluster.base import ClusterError, Key
from sftjob_operator.workqueue import WorkQueue

logger = logging.getLogger(__name__)

IDLE_TICK_SECONDS = 5.0
STUCK_SECONDS = 180.0  # longer than the requests of one pass with all their time limits
LOUD_FAILURES = 3  # a cluster that fails to answer once is no news

Reconcile = Callable[[Key], Awaitable[float | None]]
"""One pass; seconds after which the key wants to be looked at again."""
OnPass = Callable[[str, float], None]
"""Told result (ok, retry, error) and seconds of every pass."""


class Workers:
    """`count` workers on one queue, and what the liveness probe wants to know of them."""

    def __init__(
        self,
        queue: WorkQueue[Key],
        reconcile: Reconcile,
        count: int,
        on_pass: OnPass = lambda result, seconds: None,
    ) -> None:
        """Nothing runs before `run`."""
        self._queue, self._reconcile, self._count, self._on_pass = queue, reconcile, count, on_pass
        self._ticks: dict[int, float] = {}

    async def run(self) -> None:
        """Work until cancelled; the end of one worker is the end of all."""
        async with asyncio.TaskGroup() as group:
            for number in range(self._count):
                group.create_task(self._work(number), name=f"worker-{number}")

    def stuck(self) -> str | None:
        """Why the process should be replaced; None while every worker ticks, or none has started."""
        now = asyncio.get_running_loop().time()
        for number, tick in self._ticks.items():
            if now - tick > STUCK_SECONDS:
                return f"worker {number} has not moved for {now - tick:.0f} s"
        return None

    async def _work(self, number: int) -> NoReturn:
        loop = asyncio.get_running_loop()
        while True:
            self._ticks[number] = loop.time()
            try:
                async with asyncio.timeout(IDLE_TICK_SECONDS):
                    key = await self._queue.get()
            except TimeoutError:
                continue
            self._ticks[number] = loop.time()
            await self._pass(key)

    async def _pass(self, key: Key) -> None:
        loop = asyncio.get_running_loop()
        started, result = loop.time(), "error"
        try:
            after = await self._reconcile(key)
            result = "ok"
            if after is not None:
                self._queue.add(key, after)
        except ClusterError as error:
            result = "retry"
            level = logging.WARNING if self._queue.failures(key) + 1 >= LOUD_FAILURES else logging.INFO
            logger.log(level, "will be tried again: %s", error, extra=subject(key))
        except Exception:
            logger.exception("the pass failed unexpectedly and will be tried again", extra=subject(key))
        finally:
            self._queue.done(key, failed=result != "ok")
            self._on_pass(result, loop.time() - started)


def subject(key: Key, uid: str | None = None) -> dict[str, object]:
    """`extra` of a log call about an SFTJob."""
    return {"sftjob": {"namespace": key.namespace, "name": key.name} | ({"uid": uid} if uid else {})}
