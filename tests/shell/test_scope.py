"""A namespace that is gone, or without rights, stops the operator for no other one."""

from __future__ import annotations

import asyncio
import logging

import pytest

from sftjob_operator.cluster.base import ClusterError, Key, Rejected
from sftjob_operator.cluster.view import IndexView
from sftjob_operator.resync import resync
from sftjob_operator.scope import watchable
from sftjob_operator.settings import Settings
from sftjob_operator.workqueue import WorkQueue

pytestmark = pytest.mark.looptime

BOTH = ("team-a", "team-b")


class Lister:
    """Refuses to list Jobs in the namespaces `without` rights."""

    def __init__(self, *without: str) -> None:
        self.without = set(without)
        self.away = False

    async def uids(self, api: str, kind: str, namespace: str, labels: dict[str, str]) -> set[str]:
        if self.away:
            raise ClusterError("503")
        if kind == "Job" and namespace in self.without:
            raise Rejected(403, "Forbidden", f"jobs.batch is forbidden in namespace {namespace}")
        return set()


async def test_only_what_may_be_read_is_watched_and_the_rest_is_named(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING):
        assert await watchable(Lister("team-b"), BOTH) == ("team-a",)
    assert caplog.messages[-1].endswith("(is the namespace gone?): team-b")
    assert await watchable(Lister(), BOTH) == BOTH
    assert await watchable(Lister("team-b"), ()) == (), "the whole cluster"


@pytest.mark.parametrize("away", [False, True])
async def test_without_any_it_waits_and_says_so_once(away: bool, caplog: pytest.LogCaptureFixture) -> None:
    lister = Lister(*BOTH)
    lister.away = away
    with caplog.at_level(logging.WARNING):
        task = asyncio.create_task(watchable(lister, BOTH))
        await asyncio.sleep(60)
        assert not task.done()
    assert (len(caplog.messages) == 1) != away
    lister.away, lister.without = False, {"team-b"}
    await asyncio.sleep(5)
    assert task.result() == ("team-a",)


async def test_the_process_ends_when_a_namespace_is_back() -> None:
    lister = Lister("team-b")
    view, queue = IndexView(), WorkQueue[Key]()
    view.bind({}, {})
    settings = Settings(namespaces=BOTH, resync_seconds=100)
    task = asyncio.create_task(resync(lister, view, queue, settings, ("team-a",)))
    await asyncio.sleep(1000)
    assert not task.done()
    lister.without = set()
    await asyncio.sleep(200)
    assert task.done()
