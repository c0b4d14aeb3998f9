"""What a platform team sets for all: the quota of a namespace, and the collection of caches, on the real cluster."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import pytest

import tiny
from devcluster import volumes
from rooms import ONE_AT_A_TIME, Kube, Room, make_room
from sft_trainer import layout

pytestmark = pytest.mark.cluster


@pytest.fixture
def room(operator: Kube, tmp_path) -> Iterator[Room]:
    yield from make_room(operator, ONE_AT_A_TIME, tmp_path)


def test_jobs_of_a_full_namespace_take_turns_and_a_preparation_removes_what_nobody_used(room: Room):
    old = layout.data_cache(room.workspace) / "old"
    for folder in reversed([old, *(one for one in old.parents if room.workspace in one.parents)]):
        volumes.workspace(folder)
    rows = old / "rows"
    rows.write_text("of long ago")
    long_ago = time.time() - 60 * 24 * 3600
    for path in (rows, old):
        os.utime(path, (long_ago, long_ago))
    tiny.model(room.workspace / "models" / "tiny")
    tiny.chats(room.workspace / "datasets" / "chats.jsonl")
    spec = {**tiny.spec(maxSteps=100_000), "workers": {"nodes": 1}, "checkpoint": {"periodSteps": 500}}

    room.apply("first", spec)
    room.wait("first", "Running")
    assert not old.exists()
    record = layout.collected(room.workspace).read_text()
    assert "unused for 60 days" in record
    assert f"after the preparation of {ONE_AT_A_TIME}/first" in record

    room.apply("second", spec)
    waiting = room.waits_for("second", "NamespaceQuota", 120)
    assert "1 in use (first)" in waiting["message"]
    assert "number 1 in the line" in waiting["message"]
    assert room.kube.list("jobs", room.namespace, "sftjob.dev/role=train,sftjob.dev/job-name=second") == []

    room.suspend("first", True)
    room.wait("second", "Running")
    room.suspend("first", False)
    room.waits_for("first", "NamespaceQuota")
