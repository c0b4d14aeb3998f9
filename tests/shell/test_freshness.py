"""A pass waits for the view to catch up with our own writes, and not for ever."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from sftjob_operator.cluster.base import Key, Manifest
from sftjob_operator.freshness import PATIENCE_SECONDS, Freshness, at_least

pytestmark = pytest.mark.looptime

KEY = Key("team", "bot")


def job(version: str, uid: str = "u", **metadata: Any) -> Manifest:
    return {"kind": "Job", "metadata": {"uid": uid, "resourceVersion": version, **metadata}}


async def test_without_a_write_there_is_nothing_to_wait_for() -> None:
    assert Freshness().wait(KEY, []) == 0


async def test_a_written_object_is_waited_for_until_it_shows_at_that_version() -> None:
    fresh = Freshness()
    fresh.wrote(KEY, job("10"))
    assert fresh.wait(KEY, []) == pytest.approx(PATIENCE_SECONDS)
    assert fresh.wait(KEY, [job("9")]) > 0
    assert fresh.wait(KEY, [job("10")]) == 0
    assert fresh.wait(KEY, [job("9")]) == 0, "once seen it is forgotten"


async def test_several_writes_are_all_waited_for() -> None:
    fresh = Freshness()
    fresh.wrote(KEY, job("10", "a"))
    fresh.wrote(KEY, job("11", "b"))
    fresh.wrote(KEY, job("12", "a"))
    assert fresh.wait(KEY, [job("10", "a"), job("11", "b")]) > 0
    assert fresh.wait(KEY, [job("13", "a"), job("11", "b")]) == 0


async def test_a_deleted_object_is_waited_for_until_it_is_going() -> None:
    fresh = Freshness()
    fresh.wrote(KEY, job("10"))
    fresh.deleted(KEY, "u")
    assert fresh.wait(KEY, [job("10")]) > 0
    assert fresh.wait(KEY, [job("11", deletionTimestamp="now")]) == 0


async def test_patience_ends() -> None:
    fresh = Freshness()
    fresh.wrote(KEY, job("10"))
    await asyncio.sleep(PATIENCE_SECONDS + 0.1)
    assert fresh.wait(KEY, []) == 0


async def test_one_key_does_not_wait_for_anothers_write() -> None:
    fresh = Freshness()
    fresh.wrote(KEY, job("10"))
    assert fresh.wait(Key("team", "other"), []) == 0


async def test_what_the_view_never_shows_is_not_waited_for() -> None:
    fresh = Freshness()
    fresh.wrote(KEY, {"kind": "ConfigMap", "metadata": {"uid": "c", "resourceVersion": "1"}})
    assert fresh.wait(KEY, []) == 0


@pytest.mark.parametrize(
    ("version", "wanted", "enough"),
    [("9", "10", False), ("10", "10", True), ("11", "10", True), ("abc", "abc", True), ("abc", "10", False)],
)
def test_resource_versions_are_compared_as_numbers(version: str, wanted: str, enough: bool) -> None:
    assert at_least(version, wanted) is enough
