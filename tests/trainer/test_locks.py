"""The lock of a cache entry: it ends with its holder, and what is left of the file means nothing."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from sft_trainer.data import cache
from sft_trainer.remote import copy
from sft_trainer.remote.listing import Listing, Remote


def holder(entry: Path) -> subprocess.Popen[str]:
    """Another process that holds the lock until it is killed."""
    script = (
        "import sys, time; from pathlib import Path; from sft_trainer.data import cache\n"
        "with cache.alone(Path(sys.argv[1])): print('held', flush=True); time.sleep(600)"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(entry)], env=env, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_a_holder_is_waited_for_and_its_kill_frees_the_lock(tmp_path: Path) -> None:
    process, entered = holder(tmp_path / "entry"), threading.Event()

    def wait() -> None:
        with cache.alone(tmp_path / "entry"):
            entered.set()

    waiter = threading.Thread(target=wait)
    waiter.start()
    assert not entered.wait(0.3)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert entered.wait(30)
    waiter.join()


@pytest.mark.parametrize("days", [-400, 400], ids=["from long ago", "from the future of another clock"])
def test_the_file_of_a_holder_that_is_gone_with_its_node_is_no_lock(tmp_path: Path, days: int) -> None:
    left = tmp_path / ".entry.lock"
    left.write_text("1234 on another node")
    moment = time.time() + days * 86400
    os.utime(left, (moment, moment))
    with cache.alone(tmp_path / "entry") as is_held:
        assert is_held


def test_without_locks_two_copies_do_not_write_into_one_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*words: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refused)
    both, seen = threading.Barrier(2), set()

    def read(one: Remote, start: int, end: int) -> bytes:
        seen.update(path.parent.name for path in tmp_path.glob(".*/a.jsonl"))
        both.wait(30)
        return b"x" * (end - start)

    listing = Listing("s3://b/a", "f.uri", (Remote("a.jsonl", "a.jsonl", 40, "e"),), read)
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda _: copy.copy(listing, tmp_path, piece=10), range(2)))
    assert len(seen) == 2
    assert found[0] == found[1]
    assert (found[0] / "a.jsonl").read_bytes() == b"x" * 40
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == [found[0].name]
