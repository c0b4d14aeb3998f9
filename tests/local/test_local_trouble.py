"""What can go wrong around the ranks: the display, the disk, the state, the operator itself. The ranks are never forgotten."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from local.local_bench import Bench, finish, lives, until
from sftjob_operator.cli import app
from sftjob_operator.cli.errors import CliError
from sftjob_operator.cluster.base import ClusterError, Key
from sftjob_operator.reconcile import Reconciler

FULL_DISK = """
import errno, pathlib
from sftjob_operator.cli import app
from sftjob_operator.cluster.local import LocalCluster
tick = LocalCluster.tick
def full(cluster):
    if pathlib.Path({state!r}, "full").exists():
        raise OSError(errno.ENOSPC, "No space left on device")
    tick(cluster)
LocalCluster.tick = full
app.main()
"""
HELD = {"FAKE_STEPS": "9", "FAKE_HOLD": "4"}


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


@pytest.mark.processes
def test_a_job_goes_on_when_nobody_reads_what_it_says(bench: Bench):
    bench.env = HELD
    process = bench.start()
    assert process.stdout is not None
    until(lambda: bench.step() == 4, "step 4")
    process.stdout.close()  # as `| head` does
    (bench.job_folder / "go").touch()
    assert process.wait(90) == 0
    assert bench.job()["status"]["phase"] == "Succeeded"


@pytest.mark.processes
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_job_goes_on_when_its_words_find_no_space(bench: Bench):
    with open("/dev/full", "w") as full:
        process = bench.start(stdout=full, stderr=subprocess.PIPE)
        _, said = process.communicate(timeout=90)
    assert (process.returncode, said) == (0, "")


@pytest.mark.processes
def test_a_full_disk_ends_the_run_with_a_sentence_and_the_next_one_takes_the_ranks_up(bench: Bench):
    bench.env = HELD
    process = bench.start("-c", FULL_DISK.format(state=str(bench.state)))
    until(lambda: bench.step() == 4, "step 4")
    (bench.state / "full").touch()
    code, out = finish(process)
    said = " ".join(out.split())
    assert "No space left on device; the ranks run on: the same command takes them up" in said
    assert (code, "Traceback" in out) == (1, False)
    assert all(lives(pid) for pid in bench.pids(1))
    (bench.state / "full").unlink()
    (bench.job_folder / "go").touch()
    assert bench.run()[0] == 0
    assert len(bench.job()["status"]["attempts"]) == 1


@pytest.mark.processes
def test_a_pass_that_keeps_failing_is_told_and_one_ctrl_c_ends_the_ranks(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
):
    bench.env = HELD
    reconcile = Reconciler.reconcile

    async def failing(self: Reconciler, key: Key) -> float | None:
        if bench.step() == 4:
            raise ClusterError("the world is upside down")
        return await reconcile(self, key)

    monkeypatch.setattr(Reconciler, "reconcile", failing)

    def interrupt() -> None:
        until(lambda: bench.step() == 4, "step 4")
        time.sleep(3)  # three failures and their back-off
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    code, out = bench.run()
    thread.join()
    assert code == 130
    assert out.count("the operator cannot go on, and tries again: the world is upside down") == 1
    assert not any(lives(pid) for pid in bench.pids(1))
    monkeypatch.undo()
    (bench.job_folder / "go").touch()
    assert bench.run()[0] == 0
    assert bench.job()["status"]["restarts"] == 0


@pytest.mark.processes
def test_a_signal_that_was_ignored_at_the_start_stays_ignored(bench: Bench):
    bench.env = HELD
    process = bench.start(preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))  # as nohup does
    until(lambda: bench.step() == 4, "step 4")
    process.send_signal(signal.SIGHUP)
    (bench.job_folder / "go").touch()
    assert finish(process)[0] == 0


# ------------------------------------------------------------------------- the state directory


def refused(*words: str) -> str:
    done = CliRunner().invoke(app.app, list(words))
    assert isinstance(done.exception, CliError), done.exception
    assert done.exception.code == 2
    return str(done.exception)


def test_a_state_that_is_a_file_is_named(bench: Bench):
    bench.state.touch()
    words = ("--workspace", str(bench.workspace), "--state", str(bench.state))
    assert f"--state {bench.state} cannot be used: File exists" in refused("run", str(bench.file()), *words)


@pytest.mark.slow
def test_a_state_that_may_not_be_written_is_named(bench: Bench):
    file = bench.file()
    bench.folder.chmod(0o500)
    # Root may write everywhere, unless it gives up the capability to do so.
    as_user = ["setpriv", "--bounding-set=-dac_override"] if os.geteuid() == 0 else []
    words = ["run", str(file), "--workspace", str(bench.workspace), "--state", str(bench.state)]
    sftjob = [sys.executable, "-m", "sftjob_operator.cli.app"]
    done = subprocess.run([*as_user, *sftjob, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert f"--state {bench.state} cannot be used: Permission" in " ".join(done.stderr.split())


def test_a_state_that_cannot_be_written_after_all_is_named(bench: Bench):
    bench.state.mkdir()
    (bench.state / "objects").touch()
    words = ("--workspace", str(bench.workspace), "--state", str(bench.state))
    said = refused("run", str(bench.file()), *words)
    assert f"--state {bench.state} cannot be used: [Errno 20] Not a directory" in said


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"metadata": {"resourceVersion": "x", "name": "a"}}'])
@pytest.mark.parametrize("command", ["get", "logs", "delete", "run"])
def test_a_stored_file_that_is_broken_is_named(bench: Bench, command: str, text: str):
    file = bench.state / "objects" / "sftjob" / "default" / "other.json"
    file.parent.mkdir(parents=True)
    file.write_text(text)
    words = [str(bench.file())] if command == "run" else ["bot"] if command != "get" else []
    assert f"{file} does not hold a stored object" in refused(command, *words, "--state", str(bench.state))
