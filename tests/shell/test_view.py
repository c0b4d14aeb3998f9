"""The view: what of the informer's cache is kept and shown, and how it is put right now and then."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from sftjob_operator.cluster.base import ClusterError, Key, Manifest
from sftjob_operator.cluster.view import IndexView, key_of_child, slim, slim_job
from sftjob_operator.resync import resync
from sftjob_operator.settings import Settings
from sftjob_operator.workqueue import WorkQueue

pytestmark = pytest.mark.looptime

KEY = Key("team", "bot")


def body(uid: str, created: str = "2026-01-01T00:00:00Z", **metadata: Any) -> Manifest:
    return {
        "metadata": {"namespace": "team", "name": "bot", "uid": uid, "creationTimestamp": created, **metadata}
    }


def test_before_the_informer_has_started_there_is_nothing() -> None:
    view = IndexView()
    assert view.sftjob(KEY) is None
    assert view.jobs(KEY) == []
    assert view.keys() == []


def test_of_two_under_one_name_the_newer_is_shown() -> None:
    view = IndexView()
    view.bind({KEY: [body("new", "2026-01-02T00:00:00Z"), body("old")]}, {})
    shown = view.sftjob(KEY)
    assert shown is not None
    assert shown["metadata"]["uid"] == "new"


def test_what_is_known_to_be_gone_is_not_shown() -> None:
    view = IndexView()
    view.bind({KEY: [body("ghost")]}, {KEY: [body("job"), body("ghost-job")]})
    assert view.uids() == {"ghost", "job", "ghost-job"}
    view.hide(frozenset({"ghost", "ghost-job"}))
    assert view.sftjob(KEY) is None
    assert [job["metadata"]["uid"] for job in view.jobs(KEY)] == ["job"]
    assert view.keys() == []


def test_half_of_an_object_is_not_kept_and_the_original_stays_whole() -> None:
    original = {
        "metadata": {
            "name": "bot",
            "managedFields": [1],
            "annotations": {"kubectl.kubernetes.io/last-applied-configuration": "{}", "a": "b"},
        },
        "spec": {"parallelism": 2, "template": {"big": True}},
    }
    assert slim(original)["metadata"] == {"name": "bot", "annotations": {"a": "b"}}
    assert slim_job(original)["spec"] == {"parallelism": 2}
    assert "managedFields" in original["metadata"]
    assert "template" in original["spec"]


def test_a_job_without_our_label_has_no_key() -> None:
    assert key_of_child(body("x")) is None
    assert key_of_child(body("x", labels={"sftjob.dev/job-name": "bot"})) == KEY


class Lister:
    """The two lists of a resync."""

    def __init__(self, *uids: str) -> None:
        self.there = set(uids)
        self.broken = False

    async def uids(self, api: str, kind: str, namespace: str, labels: dict[str, str]) -> set[str]:
        if self.broken:
            raise ClusterError("503")
        return self.there


async def test_every_key_comes_back_within_each_period_also_while_the_cluster_is_away() -> None:
    view, queue, lister = IndexView(), WorkQueue[Key](), Lister("a", "b")
    view.bind({Key("team", "a"): [body("a")], Key("team", "b"): [body("b")]}, {})
    task = asyncio.create_task(resync(lister, view, queue, Settings(resync_seconds=100), ()))
    seen: list[Key] = []
    for round_number in range(3):
        lister.broken = round_number == 1
        for _ in range(2):
            async with asyncio.timeout(200):
                seen.append(await queue.get())
            queue.done(seen[-1])
    assert seen == [Key("team", "a"), Key("team", "b")] * 3
    lister.there = {"a"}
    await asyncio.sleep(200)
    assert view.keys() == [Key("team", "a")]
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
