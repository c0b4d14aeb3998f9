"""What is collected from a volume and what never is, through kills and collections at the same time."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from sft_trainer import collect, uses
from sft_trainer.collect import Item
from sft_trainer.config import CollectConfig as Policy
from sft_trainer.data import cache
from sft_trainer.errors import Crash
from sft_trainer.volume import Desk

DAY = 24 * 3600.0
OLD = Policy(unused_seconds=30 * DAY)


def entry(workspace: Path, name: str, days: float, size: int = 10) -> Path:
    """A folder of the workspace that was last used so long ago."""
    folder = workspace / name
    (folder / "below").mkdir(parents=True)
    (folder / "below" / "file").write_bytes(b"x" * size)
    return aged(folder, days)


def aged(folder: Path, days: float) -> Path:
    moment = time.time() - days * DAY
    for path in (*folder.rglob("*"), folder):
        os.utime(path, (moment, moment))
    return folder


def paths(items: list[Item]) -> list[str]:
    return [item.path for item in items]


def entries(folder: Path) -> list[Path]:
    """Without their locks."""
    return [path for path in folder.iterdir() if path.is_dir()]


def gone(workspace: Path, policy: Policy = OLD) -> list[str]:
    return paths(list(collect.collect(workspace, policy)))


def test_caches_that_nobody_used_for_long_go_and_nothing_else(tmp_path: Path) -> None:
    for kind in ("data", "sources", "models"):
        entry(tmp_path, f".sftjob/cache/{kind}/old", 31)
        entry(tmp_path, f".sftjob/cache/{kind}/new", 29)
    entry(tmp_path, ".sftjob/cache/models/.m.partial", 40)
    entry(tmp_path, "models/mine", 400)
    entry(tmp_path, "jobs/done/export", 400)
    entry(tmp_path, "jobs/done/checkpoints/step-1", 400)
    (tmp_path / ".sftjob/cache/models/.old.lock").touch()
    found = paths(collect.find(tmp_path, OLD))
    assert sorted(found) == [
        ".sftjob/cache/data/old",
        ".sftjob/cache/models/.m.partial",
        ".sftjob/cache/models/old",
        ".sftjob/cache/sources/old",
    ]
    assert sorted(gone(tmp_path)) == sorted(found)
    assert not any((tmp_path / path).exists() for path in found)
    assert (tmp_path / ".sftjob/cache/data/new/below/file").exists()
    assert (tmp_path / "models/mine/below/file").exists()
    assert (tmp_path / "jobs/done/checkpoints/step-1/below/file").exists()


def test_beyond_a_limit_the_longest_unused_go_but_nothing_of_the_last_day(tmp_path: Path) -> None:
    for name, days in (("a", 9.0), ("b", 5.0), ("c", 2.0), ("d", 0.5)):
        entry(tmp_path, f".sftjob/cache/data/{name}", days, size=100)
    assert gone(tmp_path, Policy(unused_seconds=30 * DAY, limit_bytes=250)) == [
        ".sftjob/cache/data/a",
        ".sftjob/cache/data/b",
    ]
    assert gone(tmp_path, Policy(unused_seconds=30 * DAY, limit_bytes=0)) == [".sftjob/cache/data/c"]
    assert gone(tmp_path, Policy(unused_seconds=0, limit_bytes=0)) == []


def test_what_an_open_job_needs_stays_however_old(tmp_path: Path) -> None:
    entry(tmp_path, ".sftjob/cache/data/suspended", 400)
    entry(tmp_path, "jobs/suspended/export", 400)
    entry(tmp_path, "jobs/suspended/checkpoints/step-1", 400)
    needed = {"jobs": ("suspended",), "directories": (".sftjob/cache/data/suspended",)}
    policy = Policy(unused_seconds=30 * DAY, limit_bytes=0, checkpoints=True, **needed)
    assert gone(tmp_path, policy) == []


def test_checkpoints_go_with_an_export_beside_them_and_the_export_stays(tmp_path: Path) -> None:
    for job, days, exported in (("done", 31, True), ("fresh", 3, True), ("failed", 400, False)):
        entry(tmp_path, f"jobs/{job}/checkpoints/step-7", days)
        aged(tmp_path / "jobs" / job / "checkpoints", days)
        if exported:
            entry(tmp_path, f"jobs/{job}/export", days)
    entry(tmp_path, "jobs/done/checkpoints.20260101-abc/step-3", 50)
    aged(tmp_path / "jobs/done/checkpoints.20260101-abc", 50)
    policy = Policy(unused_seconds=30 * DAY, checkpoints=True)
    assert sorted(gone(tmp_path, policy)) == ["jobs/done/checkpoints", "jobs/done/checkpoints.20260101-abc"]
    assert (tmp_path / "jobs/done/export/below/file").exists()


def test_checkpoints_that_are_newer_than_the_export_are_of_a_job_that_has_none_yet(tmp_path: Path) -> None:
    entry(tmp_path, "jobs/again/export", 60)
    entry(tmp_path, "jobs/again/checkpoints/step-9", 50)
    aged(tmp_path / "jobs/again/checkpoints", 50)
    assert gone(tmp_path, Policy(unused_seconds=30 * DAY, checkpoints=True)) == []


def test_checkpoints_stay_that_a_later_job_of_the_name_may_go_on_from(tmp_path: Path) -> None:
    for job, days in (("again", 1.0), ("once", 70.0)):
        entry(tmp_path, f"jobs/{job}/checkpoints/step-9", 60)
        aged(tmp_path / "jobs" / job / "checkpoints", 60)
        entry(tmp_path, f"jobs/{job}/export", 59)
        (tmp_path / "jobs" / job / "prepared.json").write_text("{}")
        os.utime(tmp_path / "jobs" / job / "prepared.json", (0, time.time() - days * DAY))
    assert gone(tmp_path, Policy(unused_seconds=30 * DAY, checkpoints=True)) == ["jobs/once/checkpoints"]


def test_by_a_limit_alone_nothing_goes_for_its_age(tmp_path: Path) -> None:
    entry(tmp_path, ".sftjob/cache/data/a", 400, size=100)
    entry(tmp_path, ".sftjob/cache/data/b", 300, size=100)
    entry(tmp_path, "jobs/done/checkpoints/step-7", 400)
    aged(entry(tmp_path, "jobs/done/export", 400), 399)
    assert gone(tmp_path, Policy(limit_bytes=200, checkpoints=True)) == []
    assert gone(tmp_path, Policy(limit_bytes=199)) == [".sftjob/cache/data/a"]


def test_a_list_of_open_jobs_that_is_old_lets_nothing_go(tmp_path: Path) -> None:
    entry(tmp_path, ".sftjob/cache/data/a", 400)
    for hours, found in ((13, []), (11, [".sftjob/cache/data/a"])):
        listed = datetime.now(UTC) - timedelta(hours=hours)
        assert gone(tmp_path, Policy(unused_seconds=DAY, listed_time=listed)) == found


def test_the_base_model_of_an_exported_adapter_stays(tmp_path: Path) -> None:
    for name in ("base", "other"):
        entry(tmp_path, f".sftjob/cache/models/{name}", 400)
    (tmp_path / "jobs/lora/export").mkdir(parents=True)
    (tmp_path / "jobs/lora/export/adapter_config.json").write_text("{}")
    result = {"result": {"model": {"directory": ".sftjob/cache/models/base"}}}
    (tmp_path / "jobs/lora/prepared.json").write_text(json.dumps(result))
    (tmp_path / "jobs/broken").mkdir()
    (tmp_path / "jobs/broken/prepared.json").write_text("no json")
    assert gone(tmp_path) == [".sftjob/cache/models/other"]


def test_a_use_marks_the_cache_by_the_clock_of_the_volume(tmp_path: Path) -> None:
    found = entry(tmp_path, ".sftjob/cache/data/a", 400)
    mine = entry(tmp_path, "models/mine", 400)
    with uses.kept(tmp_path, [".sftjob/cache/data/a", "models/mine", ".sftjob/cache/data/none"], 0.01):
        for _ in range(500):
            if found.stat().st_mtime > time.time() - DAY:
                break
            time.sleep(0.01)
    assert collect.find(tmp_path, OLD) == []
    assert mine.stat().st_mtime < time.time() - DAY
    aged(found, 400)
    assert cache.lookup(found) is None  # damaged, which is not the point: it was looked at
    assert abs(uses.volume_time(tmp_path) - time.time()) < 60


def test_a_training_that_misses_its_cache_says_that_it_is_to_be_prepared_again(tmp_path: Path) -> None:
    entry(tmp_path, ".sftjob/cache/data/a", 1)
    uses.require(tmp_path, [".sftjob/cache/data/a"])
    with pytest.raises(Crash, match="is no longer on the volume") as caught:
        uses.require(tmp_path, [".sftjob/cache/data/a", ".sftjob/cache/data/b"])
    assert caught.value.reason == "Unprepared"


def test_what_a_preparation_finds_just_before_it_goes_is_put_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = entry(tmp_path, ".sftjob/cache/data/a", 400)
    rename = Path.rename

    def slow(self: Path, target: Path) -> Path:
        if self == found:
            uses.touch(found)
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", slow)
    assert gone(tmp_path) == []
    assert (found / "below/file").exists()


def test_what_is_used_after_it_was_found_stays(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        entry(tmp_path, f".sftjob/cache/data/{name}", 400)
    found = []
    for item in collect.collect(tmp_path, Policy(limit_bytes=0)):  # all are found before the first one goes
        found.append(item.path)
        for other in entries(tmp_path / ".sftjob/cache/data"):
            uses.touch(other)
    assert len(found) == 1
    assert len(entries(tmp_path / ".sftjob/cache/data")) == 2


def test_what_a_preparation_works_on_is_left_to_it(tmp_path: Path) -> None:
    made = entry(tmp_path, ".sftjob/cache/models/m", 400)
    left = entry(tmp_path, ".sftjob/cache/models/.m.partial", 400)
    with cache.alone(made):
        assert gone(tmp_path) == []
    assert made.exists()
    assert left.exists()
    assert len(gone(tmp_path)) == 2


def test_what_would_go_is_shown_of_a_volume_that_may_not_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry(tmp_path, ".sftjob/cache/data/a", 400)

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(30, "Read-only file system")

    for name in ("mkdir", "touch", "rename", "write_text"):
        monkeypatch.setattr(Path, name, refuse)
    monkeypatch.setattr("tempfile.NamedTemporaryFile", refuse)
    assert paths(collect.find(tmp_path, OLD)) == [".sftjob/cache/data/a"]


def test_without_a_limit_what_was_used_lately_is_not_walked_through(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry(tmp_path, ".sftjob/cache/data/old", 400)
    entry(tmp_path, ".sftjob/cache/data/new", 1)
    walked, walk = [], os.walk
    monkeypatch.setattr(
        os, "walk", lambda path, **more: (walked.append(Path(path).name), walk(path, **more))[1]
    )
    assert gone(tmp_path) == [".sftjob/cache/data/old"]
    assert "new" not in walked


@pytest.mark.parametrize("link", [".sftjob", ".sftjob/cache", ".sftjob/trash", "jobs"])
def test_nothing_is_removed_through_a_link(tmp_path: Path, link: str) -> None:
    workspace, elsewhere = tmp_path / "workspace", tmp_path / "elsewhere"
    for name in ("x", "data/x", "cache/data/x", "trash/x", "done/checkpoints/x", "done/export/x"):
        entry(elsewhere, name, 400)
    (workspace / link).parent.mkdir(parents=True)
    (workspace / link).symlink_to(elsewhere)
    before = sorted(elsewhere.rglob("*"))
    with suppress(NotADirectoryError):
        assert gone(workspace, Policy(unused_seconds=DAY, checkpoints=True)) == []
    assert sorted(elsewhere.rglob("*")) == before


def test_a_killed_collection_leaves_whole_entries_and_the_next_one_ends_it(tmp_path: Path) -> None:
    for number in range(30):
        entry(tmp_path, f".sftjob/cache/data/{number}", 400)
    script = (
        "import sys, shutil, time; from pathlib import Path; from sft_trainer import collect\n"
        "remove = shutil.rmtree\n"
        "def slow(path, **more):\n"
        "    (path / 'below' / 'file').unlink(); print(path, flush=True); time.sleep(600)\n"
        "shutil.rmtree = slow\n"
        "list(collect.collect(Path(sys.argv[1]), collect.CollectConfig(unused_seconds=86400.0)))\n"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", script, str(tmp_path)]
    process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.readline()
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    left = entries(tmp_path / ".sftjob/cache/data")
    assert len(left) == 29
    assert all((one / "below/file").exists() for one in left)
    assert len(gone(tmp_path)) == 29
    assert list((tmp_path / ".sftjob/trash").iterdir()) == []


def test_two_collections_at_once_remove_everything_once(tmp_path: Path) -> None:
    for number in range(60):
        entry(tmp_path, f".sftjob/cache/data/{number}", 400)
    with ThreadPoolExecutor(3) as pool:
        found = [path for each in pool.map(lambda _: gone(tmp_path), range(3)) for path in each]
    assert len(found) == len(set(found)) == 60
    assert entries(tmp_path / ".sftjob/cache/data") == []


def test_links_out_of_the_workspace_are_not_followed(tmp_path: Path) -> None:
    outside = entry(tmp_path, "outside", 400)
    workspace = tmp_path / "workspace"
    (workspace / ".sftjob/cache/data").mkdir(parents=True)
    (workspace / ".sftjob/cache/data/link").symlink_to(outside)
    (workspace / ".sftjob/cache/models").symlink_to(tmp_path)
    assert gone(workspace) == []
    inside = entry(workspace, ".sftjob/cache/data/a", 400)
    (inside / "link").symlink_to(outside)
    os.utime(inside, (0, 0))
    os.utime(inside / "link", (0, 0), follow_symlinks=False)
    assert gone(workspace) == [".sftjob/cache/data/a"]
    assert (outside / "below/file").exists()


def test_the_volumes_program_shows_first_and_removes_when_asked(tmp_path: Path) -> None:
    entry(tmp_path, ".sftjob/cache/data/a", 40)

    def ask(**more: Any) -> list[dict[str, Any]]:
        request = {"do": "collect", "unusedSeconds": 30 * DAY, "jobs": [], "directories": [], **more}
        return list(Desk(tmp_path).answers(json.dumps(request)))

    shown = ask()
    assert shown[0]["path"] == ".sftjob/cache/data/a"
    assert (shown[0]["bytes"], shown[0]["unusedSeconds"] // DAY) == (10, 40)
    assert (tmp_path / ".sftjob/cache/data/a").exists()
    assert [item["path"] for item in ask(remove=True)[:-1]] == [".sftjob/cache/data/a"]
    assert not (tmp_path / ".sftjob/cache/data/a").exists()


def test_the_next_job_makes_again_what_was_collected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from preparing import Room, chat

    room = Room(tmp_path, monkeypatch)
    room.write("datasets/chats.jsonl", chat("hi", "hello"))
    first = room.run()
    assert first.prepare is not None
    folder = aged(room.workspace / first.prepare.data.cache, 40)
    second = room.run()
    assert folder.stat().st_mtime > time.time() - DAY  # found, and so used
    aged(folder, 40)
    assert gone(room.workspace) == [first.prepare.data.cache]
    third = room.run()
    assert second.prepare == third.prepare
    assert folder.is_dir()
    shutil.rmtree(folder)
