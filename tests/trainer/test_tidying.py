"""What a preparation collects when it is done, and that it is none the worse for it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from preparing import CHAT, Room
from sft_trainer.config import CollectConfig
from trainer.test_collect import DAY, aged, entry

OLD, NEEDED = ".sftjob/cache/data/old", ".sftjob/cache/models/needed"


@pytest.fixture
def room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Room:
    found = Room(tmp_path, monkeypatch)
    found.write("datasets/chats.jsonl", CHAT)
    return found


def collects(room: Room, **more: Any) -> None:
    config = CollectConfig(**{"unused_seconds": 30 * DAY, "listed_time": datetime.now(UTC), **more})
    (room.config / "collect.json").write_text(config.to_json())


def record(room: Room) -> Path:
    return room.workspace / ".sftjob" / "collected.log"


def test_an_old_cache_goes_and_what_an_open_job_needs_stays(
    room: Room, caplog: pytest.LogCaptureFixture
) -> None:
    entry(room.workspace, OLD, 31)
    entry(room.workspace, NEEDED, 400)
    collects(room, directories=(NEEDED,), jobs=("suspended",))
    outcome = room.run()
    assert outcome.prepare is not None
    assert not (room.workspace / OLD).exists()
    assert (room.workspace / NEEDED / "below" / "file").exists()
    assert (room.workspace / outcome.prepare.data.cache / "facts.json").exists()
    words = f"{OLD}, 0.00 GiB, unused for 31 days"
    assert f"removed {words}" in caplog.text
    assert record(room).read_text().endswith(f"{words}, removed after the preparation of default/job\n")


def test_without_the_platforms_word_nothing_is_touched(room: Room) -> None:
    entry(room.workspace, OLD, 400)
    assert room.run().outcome == "Succeeded"
    assert (room.workspace / OLD).exists()
    assert not record(room).exists()


def test_a_volume_is_looked_at_once_a_day(room: Room) -> None:
    collects(room)
    room.run()
    entry(room.workspace, OLD, 31)
    room.run()
    assert (room.workspace / OLD).exists()
    aged(record(room), 1.1)
    room.run()
    assert not (room.workspace / OLD).exists()


def test_a_preparation_that_waited_for_long_leaves_the_day_to_the_next(room: Room) -> None:
    entry(room.workspace, OLD, 31)
    collects(room, listed_time=datetime.now(UTC) - timedelta(hours=13))
    assert room.run().outcome == "Succeeded"
    assert (room.workspace / OLD).exists()
    collects(room)
    room.run()
    assert not (room.workspace / OLD).exists()


@pytest.mark.parametrize("document", ["", "[]", json.dumps({"unusedSeconds": 1, "tomorrow": True})])
def test_a_request_that_this_trainer_does_not_understand_costs_a_line_in_the_log(
    room: Room, caplog: pytest.LogCaptureFixture, document: str
) -> None:
    entry(room.workspace, OLD, 400)
    (room.config / "collect.json").write_text(document)
    assert room.run().outcome == "Succeeded"
    assert "caches are not collected: ValidationError" in caplog.text
    assert (room.workspace / OLD).exists()


def test_a_collection_that_fails_leaves_the_preparation_successful(
    room: Room, caplog: pytest.LogCaptureFixture
) -> None:
    (room.workspace / ".sftjob").mkdir()
    (room.workspace / ".sftjob" / "trash").write_text("a file where a folder should be")
    collects(room)
    assert room.run().outcome == "Succeeded"
    assert "caches are not collected: FileExistsError" in caplog.text


def test_a_preparation_that_failed_collects_nothing(room: Room) -> None:
    entry(room.workspace, OLD, 400)
    collects(room)
    room.write("datasets/chats.jsonl", "no row")
    assert room.run().outcome == "Failed"
    assert (room.workspace / OLD).exists()


SLOW = """
import sys, time
from pathlib import Path
from sft_trainer import collect, tidying
from sft_trainer.config import JobIdentity
def slow(*_):
    print("collecting", flush=True)
    time.sleep(600)
collect.collect = slow
job = JobIdentity(namespace="default", name="job", uid="u")
tidying.tidy(Path(sys.argv[1]), Path(sys.argv[2]), job, float(sys.argv[3]))
sys.exit(1)
"""


@pytest.mark.parametrize("told", [True, False], ids=["told to end", "too slow"])
def test_a_volume_that_hangs_holds_no_pod_and_ends_it_as_a_success(room: Room, told: bool) -> None:
    collects(room)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", SLOW, str(room.config / "collect.json"), str(room.workspace)]
    seconds = "600" if told else "0.2"
    with subprocess.Popen([*command, seconds], env=environment, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"collecting\n"
        if told:
            process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0


def test_a_preparation_says_at_its_beginning_that_a_job_of_this_name_is_under_way(room: Room) -> None:
    assert room.run().outcome == "Succeeded"
    left = aged(room.workspace / "jobs" / "job", 40) / "prepared.json"
    room.write("datasets/chats.jsonl", "no row")
    assert room.run().outcome == "Failed"
    assert left.stat().st_mtime > datetime.now(UTC).timestamp() - DAY
