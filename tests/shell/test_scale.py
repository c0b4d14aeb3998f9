"""Many jobs: how often the API server hears of each, that no tenant waits for another's, that nothing is remembered."""

from __future__ import annotations

import asyncio
import itertools
from random import Random
from typing import Any

import pytest

from sftjob_operator.cluster.base import ClusterError, Key, Manifest, ref_of
from sftjob_operator.metrics import Metrics
from sftjob_operator.worker import Workers
from sftjob_operator.workqueue import WorkQueue
from shell.operating import Operator, claim, operating
from worlds import prepared_outcome, progress, sftjob

pytestmark = pytest.mark.looptime

JOBS, SECONDS = 10, 300


def job(number: int) -> Manifest:
    manifest = sftjob(f"bot-{number}", workers={"nodes": 1})
    manifest["metadata"]["uid"] = f"uid-of-{number}"
    return manifest


def says(step: int) -> bytes:
    return progress(step=step, loss=2.0 - step / 1e4).model_dump_json(by_alias=True).encode()


async def train(operator: Operator, count: int) -> None:
    """To the point where the first attempt of every job runs."""
    operator.cluster.put(claim())
    for number in range(count):
        operator.cluster.put(job(number))
    await asyncio.sleep(1)
    for made in operator.cluster.of_kind("Job"):
        operator.ends(ref_of(made), 0, prepared_outcome())
    await asyncio.sleep(1)
    operator.cluster.progress = says(0)
    for made in operator.cluster.of_kind("Job"):
        if "prepare" not in made["metadata"]["name"]:
            operator.runs(ref_of(made))
    await asyncio.sleep(1)


@pytest.mark.slow
async def test_a_running_job_is_asked_every_ten_seconds_and_written_down_every_thirty_at_most() -> None:
    async with operating() as operator:
        await train(operator, JOBS)
        writes: dict[str, list[float]] = {}
        asked: dict[str, list[float]] = {}
        patch_status, fetch_progress = operator.cluster.patch_status, operator.cluster.fetch_progress

        def now() -> float:
            return asyncio.get_running_loop().time()

        async def patched(ref: Any, status: Any, **more: Any) -> Any:
            writes.setdefault(ref.name, []).append(now())
            return await patch_status(ref, status, **more)

        async def fetched(pod: Manifest) -> bytes | None:
            asked.setdefault(pod["metadata"]["name"], []).append(now())
            return await fetch_progress(pod)

        operator.cluster.patch_status, operator.cluster.fetch_progress = patched, fetched  # type: ignore[method-assign]
        operator.cluster.calls.clear()
        random = Random(1)
        for step in range(1, SECONDS):
            operator.cluster.progress = says(step)
            for _ in range(5):  # something has happened to them, and they are looked at
                operator.queue.add(Key("team", f"bot-{random.randrange(JOBS)}"))
            await asyncio.sleep(1)
        assert len(writes) == len(asked) == JOBS
        pauses = [late - early for times in writes.values() for early, late in itertools.pairwise(times)]
        assert min(pauses) >= 30
        assert max(pauses) <= 36, "progress in status must not grow old either"
        assert (
            max(late - early for times in asked.values() for early, late in itertools.pairwise(times)) <= 11
        )
        kinds = {call for call in operator.cluster.calls if call not in {("fetch_progress", "Pod")}}
        assert kinds == {("patch_status", "SFTJob")}, "a job that trains costs nothing else"


@pytest.mark.parametrize("seconds", [0.0, 0.1], ids=["at once", "after a while"])
async def test_a_thousand_failing_jobs_of_one_tenant_do_not_delay_the_first_of_another(
    seconds: float,
) -> None:
    queue = WorkQueue[Key](line=lambda key: key.namespace)
    done: list[Key] = []

    async def reconcile(key: Key) -> float | None:
        await asyncio.sleep(seconds)
        done.append(key)
        if key.namespace == "noisy":
            raise ClusterError("no")
        return None

    workers = asyncio.create_task(Workers(queue, reconcile, 2).run())
    for number in range(1000):
        queue.add(Key("noisy", f"bot-{number}"))
    await asyncio.sleep(seconds * 20)
    before = len(done)
    queue.add(Key("quiet", "bot"))
    await asyncio.sleep(seconds * 3 + 0.01)
    workers.cancel()
    await asyncio.gather(workers, return_exceptions=True)
    assert Key("quiet", "bot") in done[before : before + 6]


@pytest.mark.slow
async def test_fifty_pods_that_hang_do_not_delay_a_new_job_with_two_workers() -> None:
    async with operating() as operator:

        async def hangs(pod: Manifest) -> bytes | None:
            await asyncio.sleep(2)
            return None

        operator.cluster.fetch_progress = hangs  # type: ignore[method-assign]
        await train(operator, 50)
        await asyncio.sleep(60)
        operator.cluster.put(job(1000))
        await asyncio.sleep(5)
        assert any(
            made["metadata"]["name"].startswith("bot-1000-prepare")
            for made in operator.cluster.of_kind("Job")
        )


def held(thing: object, seen: set[int] | None = None) -> int:
    """How many items the collections of our own objects hold, all together."""
    seen = set() if seen is None else seen
    if id(thing) in seen:
        return 0
    seen.add(id(thing))
    if isinstance(thing, dict | list | set | tuple | frozenset) or type(thing).__name__ == "deque":
        below = [*thing, *thing.values()] if isinstance(thing, dict) else list(thing)  # type: ignore[call-overload]
        return len(below) + sum(held(item, seen) for item in below)
    if type(thing).__module__.startswith("sftjob_operator"):
        return sum(held(value, seen) for value in getattr(thing, "__dict__", {}).values())
    return 0


@pytest.mark.slow
@pytest.mark.parametrize("count", [100, pytest.param(1000, marks=pytest.mark.soak)])
async def test_of_jobs_that_came_and_went_nothing_is_left(count: int) -> None:
    async with operating() as operator:
        metrics = Metrics()
        metrics.watch(operator.queue, operator.cluster, operator.reconciler.progress)
        await train(operator, 1)
        await _vanish(operator)
        series, remembered = (
            len(metrics.exposition().splitlines()),
            held(operator.reconciler) + held(operator.queue),
        )
        for _ in range(count // 20):
            await train(operator, 20)
            assert len(metrics.exposition().splitlines()) > series + 20
            await _vanish(operator)
        assert len(metrics.exposition().splitlines()) == series
        assert held(operator.reconciler) + held(operator.queue) <= remembered


async def _vanish(operator: Operator) -> None:
    for found in operator.cluster.of_kind("SFTJob"):
        await operator.cluster.delete(ref_of(found))
    await asyncio.sleep(120)
