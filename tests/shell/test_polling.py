"""Polling /progress: seldom, of the right pod, and nothing is believed that cannot be read."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from sft_trainer.config import Progress
from sftjob_operator.cluster.base import ClusterError, Key, Manifest
from sftjob_operator.polling import INDEX, ProgressPoller
from shell.fake_cluster import FakeCluster

pytestmark = pytest.mark.looptime

KEY = Key("team", "bot")
LABELS = {"sftjob.dev/job-name": "bot", "sftjob.dev/attempt": "1"}


def pod(index: int, phase: str = "Running", attempt: int = 1, **metadata: Any) -> Manifest:
    labels = {**LABELS, "sftjob.dev/attempt": str(attempt), INDEX: str(index)}
    metadata = {"namespace": "team", "name": f"bot-{attempt}-{index}-{phase}", "labels": labels, **metadata}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "status": {"phase": phase}}


def said(step: int) -> bytes:
    told = Progress(
        attempt=1, run_id="r", state="Training", step=step, total_steps=9, time="2026-01-01T00:00:00Z"
    )
    return told.to_json().encode()


def training() -> tuple[FakeCluster, ProgressPoller]:
    cluster = FakeCluster()
    cluster.put(pod(0))
    cluster.put(pod(1))
    cluster.progress = said(3)
    return cluster, ProgressPoller(cluster, 10.0)


def asked(cluster: FakeCluster) -> int:
    return cluster.calls.count(("fetch_progress", "Pod"))


async def test_however_often_it_is_looked_at_a_pod_is_asked_every_ten_seconds() -> None:
    cluster, poller = training()
    for _ in range(60):
        progress = await poller.poll(KEY, LABELS)
        assert progress is not None
        assert progress.step == 3
        await asyncio.sleep(1)
    assert 6 <= asked(cluster) <= 7


async def test_the_pod_is_looked_up_once() -> None:
    cluster, poller = training()
    for _ in range(5):
        await poller.poll(KEY, LABELS)
        await asyncio.sleep(10)
    assert cluster.calls.count(("list", "Pod")) == 1


async def test_a_pod_that_stops_answering_is_looked_up_again_and_the_last_word_stays() -> None:
    cluster, poller = training()
    await poller.poll(KEY, LABELS)
    cluster.progress = None
    await asyncio.sleep(10)
    progress = await poller.poll(KEY, LABELS)
    assert progress is not None
    cluster.progress = said(5)
    await asyncio.sleep(10)
    progress = await poller.poll(KEY, LABELS)
    assert progress is not None
    assert progress.step == 5
    assert cluster.calls.count(("list", "Pod")) == 2


async def test_a_pod_that_hangs_holds_a_pass_for_a_moment_and_its_late_answer_counts() -> None:
    cluster, poller = training()
    answer = cluster.fetch_progress

    async def slow(pod: Manifest) -> bytes | None:
        await asyncio.sleep(1.5)
        return await answer(pod)

    cluster.fetch_progress = slow  # type: ignore[method-assign]
    loop = asyncio.get_running_loop()
    began = loop.time()
    assert await poller.poll(KEY, LABELS) is None
    assert loop.time() - began < 0.5
    assert poller.due(KEY) == 1.0
    await asyncio.sleep(2)
    progress = await poller.poll(KEY, LABELS)
    assert progress is not None
    assert asked(cluster) == 1


async def test_a_pod_that_does_not_answer_is_asked_less_and_less_often_and_in_time_again_when_it_does() -> (
    None
):
    cluster, poller = training()
    cluster.progress = None
    for _ in range(300):
        await poller.poll(KEY, LABELS)
        await asyncio.sleep(1)
    assert 6 <= asked(cluster) <= 9
    cluster.progress = said(5)
    await asyncio.sleep(60)
    before = asked(cluster)
    for _ in range(60):
        await poller.poll(KEY, LABELS)
        await asyncio.sleep(1)
    assert 6 <= asked(cluster) - before <= 7


async def test_a_failing_api_server_fails_the_pass_and_not_a_forgotten_question() -> None:
    cluster, poller = training()
    cluster.fail("list", "Pod", ClusterError("no"), times=1)
    with pytest.raises(ClusterError):
        await poller.poll(KEY, LABELS)
    await asyncio.sleep(10)
    assert await poller.poll(KEY, LABELS) is not None


@pytest.mark.parametrize(
    "other",
    [
        pod(1),
        pod(0, phase="Pending"),
        pod(0, phase="Failed"),
        pod(0, deletionTimestamp="2026-01-01T00:00:00Z"),
        pod(0, attempt=2),
    ],
    ids=["index 1", "pending", "failed", "terminating", "another attempt"],
)
async def test_only_the_running_pod_with_index_0_of_this_attempt_is_asked(other: Manifest) -> None:
    cluster = FakeCluster()
    cluster.put(other)
    cluster.progress = said(3)
    assert await ProgressPoller(cluster, 10.0).poll(KEY, LABELS) is None
    assert asked(cluster) == 0


async def test_a_new_attempt_starts_without_the_old_ones_words() -> None:
    _, poller = training()
    await poller.poll(KEY, LABELS)
    assert await poller.poll(KEY, {**LABELS, "sftjob.dev/attempt": "2"}) is None
    assert poller.latest == {}


async def test_an_answer_that_cannot_be_read_is_none() -> None:
    cluster, poller = training()
    cluster.progress = b'{"step": "many"}'
    assert await poller.poll(KEY, LABELS) is None
    assert poller.latest == {}


async def test_a_job_that_does_not_train_any_more_is_forgotten() -> None:
    _, poller = training()
    await poller.poll(KEY, LABELS)
    assert KEY in poller.latest
    poller.forget(KEY)
    assert poller.latest == {}
