"""Workers: every outcome of a pass leads somewhere, and a stuck worker is noticed."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from sftjob_operator.cluster.base import ClusterError, Key
from sftjob_operator.worker import IDLE_TICK_SECONDS, STUCK_SECONDS, Workers
from sftjob_operator.workqueue import WorkQueue

pytestmark = pytest.mark.looptime

KEY = Key("team", "bot")


def time() -> float:
    return asyncio.get_running_loop().time()


@contextlib.asynccontextmanager
async def working(
    queue: WorkQueue[Key],
    reconcile: Callable[[Key], Awaitable[float | None]],
    results: list[str] | None = None,
    count: int = 2,
) -> AsyncIterator[Workers]:
    seen = [] if results is None else results
    workers = Workers(queue, reconcile, count, lambda result, seconds: seen.append(result))
    task = asyncio.create_task(workers.run())
    try:
        yield workers
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_a_pass_that_wants_another_gets_it_in_time() -> None:
    times: list[float] = []

    async def reconcile(key: Key) -> float | None:
        times.append(time())
        return 30 if len(times) < 3 else None

    queue: WorkQueue[Key] = WorkQueue()
    queue.add(KEY)
    async with working(queue, reconcile):
        await asyncio.sleep(1000)
    assert times == pytest.approx([0, 30, 60], abs=0.1)


@pytest.mark.parametrize(
    ("error", "result"),
    [(ClusterError("502"), "retry"), (ZeroDivisionError(), "error")],
    ids=["cluster", "bug"],
)
async def test_a_pass_that_fails_is_tried_again_and_the_worker_lives(error: Exception, result: str) -> None:
    results: list[str] = []

    async def reconcile(key: Key) -> float | None:
        if len(results) < 3:
            raise error
        return None

    queue: WorkQueue[Key] = WorkQueue()
    queue.add(KEY)
    async with working(queue, reconcile, results):
        await asyncio.sleep(1000)
    assert results == [result] * 3 + ["ok"]
    assert queue.failures(KEY) == 0


async def test_idle_workers_are_healthy() -> None:
    async def reconcile(key: Key) -> float | None:
        return None

    async with working(WorkQueue(), reconcile) as workers:
        await asyncio.sleep(STUCK_SECONDS * 5)
        assert workers.stuck() is None


async def test_a_worker_that_does_not_come_back_is_named() -> None:
    async def reconcile(key: Key) -> float | None:
        await asyncio.Event().wait()
        return None

    queue: WorkQueue[Key] = WorkQueue()
    queue.add(KEY)
    async with working(queue, reconcile) as workers:
        await asyncio.sleep(STUCK_SECONDS - IDLE_TICK_SECONDS)
        assert workers.stuck() is None
        await asyncio.sleep(IDLE_TICK_SECONDS * 2)
        assert "has not moved for" in str(workers.stuck())


async def test_workers_that_never_started_are_not_stuck() -> None:
    async def reconcile(key: Key) -> float | None:
        return None

    assert Workers(WorkQueue(), reconcile, 2).stuck() is None


async def test_a_cancelled_pass_ends_the_worker_quietly() -> None:
    async def reconcile(key: Key) -> float | None:
        await asyncio.sleep(100)
        return None

    queue: WorkQueue[Key] = WorkQueue()
    queue.add(KEY)
    started = time()
    async with working(queue, reconcile):
        await asyncio.sleep(1)
    assert time() - started == pytest.approx(1, abs=0.1)
