"""The contract of the work queue, on a clock that only moves when everybody sleeps."""

from __future__ import annotations

import asyncio

import pytest

from sftjob_operator.workqueue import WorkQueue

pytestmark = pytest.mark.looptime


def time() -> float:
    return asyncio.get_running_loop().time()


async def take_within(queue: WorkQueue[str], seconds: float) -> str | None:
    try:
        async with asyncio.timeout(seconds):
            return await queue.get()
    except TimeoutError:
        return None


async def test_a_key_added_many_times_is_handed_out_once() -> None:
    queue: WorkQueue[str] = WorkQueue()
    for _ in range(100):
        queue.add("a")
    assert await take_within(queue, 1) == "a"
    queue.done("a")
    assert await take_within(queue, 1000) is None


async def test_an_active_key_is_not_handed_out_twice_at_a_time_but_runs_once_more() -> None:
    queue: WorkQueue[str] = WorkQueue()
    queue.add("a")
    assert await queue.get() == "a"
    queue.add("a")
    queue.add("a")
    assert await take_within(queue, 100) is None
    queue.done("a")
    assert await take_within(queue, 1) == "a"
    queue.done("a")
    assert await take_within(queue, 100) is None


async def test_a_delayed_key_comes_when_it_is_due() -> None:
    queue: WorkQueue[str] = WorkQueue()
    started = time()
    queue.add("a", after=30)
    assert await queue.get() == "a"
    assert time() - started == pytest.approx(30)


@pytest.mark.parametrize("delays", [(10, 30), (30, 10)], ids=["earlier first", "later first"])
async def test_the_earliest_of_two_delays_holds(delays: tuple[float, float]) -> None:
    queue: WorkQueue[str] = WorkQueue()
    started = time()
    for delay in delays:
        queue.add("a", after=delay)
    assert await queue.get() == "a"
    assert time() - started == pytest.approx(10)
    queue.done("a")
    assert await take_within(queue, 100) is None


async def test_the_earliest_delay_given_while_active_holds_and_counts_from_when_it_was_given() -> None:
    queue: WorkQueue[str] = WorkQueue()
    queue.add("a")
    await queue.get()
    started = time()
    queue.add("a", after=60)
    queue.add("a", after=20)
    await asyncio.sleep(5)
    queue.done("a")
    assert await queue.get() == "a"
    assert time() - started == pytest.approx(20)


async def test_a_waiting_worker_is_woken_by_a_key_that_is_due_sooner() -> None:
    queue: WorkQueue[str] = WorkQueue()
    queue.add("late", after=1000)
    worker = asyncio.create_task(queue.get())
    await asyncio.sleep(1)
    queue.add("soon")
    assert await worker == "soon"
    assert time() < 2


async def test_failures_back_off_exponentially_up_to_the_limit() -> None:
    queue: WorkQueue[str] = WorkQueue(backoff_seconds=1, backoff_limit_seconds=5)
    queue.add("a")
    waits = []
    for _ in range(6):
        before = time()
        await queue.get()
        waits.append(time() - before)
        queue.done("a", failed=True)
    assert waits == pytest.approx([0, 1, 2, 4, 5, 5])
    assert queue.failures("a") == 6


@pytest.mark.parametrize("when", ["during the pass", "after it"])
async def test_an_event_does_not_shorten_the_back_off_of_a_failed_key(when: str) -> None:
    queue: WorkQueue[str] = WorkQueue(backoff_seconds=8)
    queue.add("a")
    await queue.get()
    if when == "during the pass":
        queue.add("a")
    queue.done("a", failed=True)
    started = time()
    if when == "after it":
        await asyncio.sleep(1)
        queue.add("a")
    assert await queue.get() == "a"
    assert time() - started == pytest.approx(8)
    queue.done("a")
    queue.add("a")
    assert await take_within(queue, 1) == "a", "success ends the rest"


async def test_success_forgets_earlier_failures() -> None:
    queue: WorkQueue[str] = WorkQueue(backoff_seconds=1)
    queue.add("a")
    for failed in (True, True, False):
        await queue.get()
        queue.done("a", failed=failed)
    queue.add("a")
    await queue.get()
    queue.done("a", failed=True)
    before = time()
    await queue.get()
    assert time() - before == pytest.approx(1)


async def test_a_thousand_failures_do_not_overflow_the_back_off() -> None:
    queue: WorkQueue[str] = WorkQueue(backoff_seconds=1, backoff_limit_seconds=2)
    queue.add("a")
    for _ in range(1100):
        await queue.get()
        queue.done("a", failed=True)
    assert queue.failures("a") == 1100


async def test_one_failing_key_does_not_delay_the_others() -> None:
    queue: WorkQueue[str] = WorkQueue(backoff_seconds=100)
    queue.add("bad")
    await queue.get()
    queue.done("bad", failed=True)
    queue.add("good")
    started = time()
    assert await queue.get() == "good"
    assert time() - started == pytest.approx(0, abs=0.1)


async def test_keys_leave_in_the_order_in_which_they_became_due() -> None:
    queue: WorkQueue[str] = WorkQueue()
    queue.add("third", after=2)
    queue.add("first")
    queue.add("second")
    queue.add("first")
    order = []
    for _ in range(3):
        order.append(await queue.get())
        queue.done(order[-1])
    assert order == ["first", "second", "third"]


async def test_lines_take_turns() -> None:
    queue: WorkQueue[str] = WorkQueue(line=lambda key: key[0])
    for number in range(1000):
        queue.add(f"a{number}")
    queue.add("b0")
    queue.add("b1")
    queue.add("c0")
    order = [await queue.get() for _ in range(7)]
    assert order == ["a0", "b0", "c0", "a1", "b1", "a2", "a3"]
    assert queue.depth == 996
    await asyncio.sleep(3)
    queue.add("b2")
    assert queue.oldest_seconds == pytest.approx(3)
    assert [await queue.get(), await queue.get()] == ["a4", "b2"]


async def test_a_key_stands_in_its_line_once_however_often_and_when_it_was_added() -> None:
    queue: WorkQueue[str] = WorkQueue()
    queue.add("a", after=5)
    queue.add("a")
    await queue.get()
    queue.done("a")
    queue.add("a", after=5)
    await asyncio.sleep(5)
    assert await take_within(queue, 1) == "a"
    queue.done("a")
    assert await take_within(queue, 1) is None


async def test_depth_and_age_count_only_what_is_due_and_not_taken() -> None:
    queue: WorkQueue[str] = WorkQueue()
    queue.add("later", after=50)
    assert (queue.depth, queue.oldest_seconds) == (0, 0)
    queue.add("a")
    queue.add("b")
    await asyncio.sleep(7)
    assert queue.depth == 2
    assert queue.oldest_seconds == pytest.approx(7)
    await queue.get()
    await queue.get()
    assert (queue.depth, queue.oldest_seconds) == (0, 0)


async def test_many_workers_share_many_keys_and_no_key_runs_beside_itself() -> None:
    queue: WorkQueue[int] = WorkQueue()
    running: set[int] = set()
    passes: list[int] = []

    async def work() -> None:
        while True:
            key = await queue.get()
            assert key not in running
            running.add(key)
            await asyncio.sleep(1)
            running.discard(key)
            passes.append(key)
            queue.done(key)

    workers = [asyncio.create_task(work()) for _ in range(4)]
    for _ in range(5):
        for key in range(20):
            queue.add(key)
        await asyncio.sleep(0.5)
    await asyncio.sleep(100)
    for worker in workers:
        worker.cancel()
    await asyncio.gather(*workers, return_exceptions=True)
    assert set(passes) == set(range(20))
    assert len(passes) <= 40


async def test_a_cancelled_worker_loses_no_key() -> None:
    queue: WorkQueue[str] = WorkQueue()
    first = asyncio.create_task(queue.get())
    await asyncio.sleep(0)
    queue.add("a")
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    assert await take_within(queue, 1) == "a"
