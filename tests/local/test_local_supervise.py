"""A container's small parent: it records the end, passes signals on, and leaves nothing of the pod behind."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from local.local_bench import lives, until
from sftjob_operator.cluster.local import supervise
from sftjob_operator.cluster.local.pods import Kubelet
from sftjob_operator.cluster.local.processes import Processes
from sftjob_operator.cluster.local.store import Store

pytestmark = pytest.mark.processes
SPAWN = (
    "import subprocess, sys, time\n"
    "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'], start_new_session=True)\n"
    "open('child', 'w').write(str(child.pid))\n"
)


Start = Callable[..., Processes]


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    path = tmp_path / "pods" / "default" / "pod"
    path.mkdir(parents=True)
    return path


@pytest.fixture
def start(directory: Path) -> Iterator[Start]:
    processes = Processes()

    def run(code: str, grace: float = 10) -> Processes:
        argv = [sys.executable, "-c", code]
        container = {"argv": argv, "env": {}, "cwd": str(directory), "graceSeconds": grace}
        (directory / supervise.CONTAINER_FILE).write_text(json.dumps(container))
        processes.start(directory)
        return processes

    yield run
    while processes.is_running(directory):
        processes.stop(directory, at_once=True)
        time.sleep(0.02)
    processes.forget(directory)


def pid_in(file: Path) -> int:
    return int(until(lambda: file.exists() and file.read_text(), f"{file.name} is written"))


@pytest.mark.parametrize(
    ("code", "expected"),
    [("raise SystemExit(7)", 7), ("import os; os.kill(os.getpid(), 9)", 137), ("print('hello')", 0)],
    ids=["exit", "signal", "success"],
)
def test_the_exit_code_is_recorded_as_a_containers(start: Start, directory: Path, code: str, expected: int):
    processes = start(code)
    end = until(lambda: processes.exit(directory), "the end is recorded")
    assert (end.code, end.reason) == (expected, "Error" if expected else "Completed")


def test_output_goes_to_the_log(start: Start, directory: Path):
    processes = start("import sys; print('out', flush=True); print('err', file=sys.stderr)")
    until(lambda: processes.exit(directory), "the end")
    assert (directory / supervise.LOG_FILE).read_text() == "out\nerr\n"


def test_the_end_of_the_first_process_is_the_end_of_all(start: Start, directory: Path):
    processes = start(SPAWN)
    until(lambda: processes.exit(directory), "the end")
    assert not lives(pid_in(directory / "child"))


def test_sigterm_is_passed_on_and_the_grace_period_ends_with_sigkill(start: Start, directory: Path):
    code = (
        SPAWN
        + "import signal\nsignal.signal(signal.SIGTERM, lambda *_: open('told', 'w'))\nopen('up', 'w')\nwhile True: time.sleep(1)"
    )
    processes = start(code, grace=0.5)
    until((directory / "up").exists, "the container is up")
    processes.stop(directory)
    assert until(lambda: processes.exit(directory), "the end").code == 137
    assert (directory / "told").exists()
    assert not lives(pid_in(directory / "child"))


def test_a_dead_supervisor_takes_its_container_along(start: Start, directory: Path):
    processes = start("import os, time; open('pid', 'w').write(str(os.getpid())); time.sleep(600)")
    pid = pid_in(directory / "pid")
    record = json.loads((directory / supervise.PROCESS_FILE).read_text())
    os.kill(record["supervisor"]["pid"], signal.SIGKILL)
    until(lambda: not lives(pid), "the container dies")
    assert not processes.is_running(directory)
    assert processes.exit(directory) is None


def test_a_second_supervisor_of_the_same_pod_steps_back(start: Start, directory: Path):
    start(
        "import os, time\nopen('starts', 'a').write('x')\nwhile not os.path.exists('go'): time.sleep(0.02)",
    )
    until((directory / "starts").exists, "the first runs")
    other = Processes()
    other.start(directory)
    until(lambda: other._children[directory].poll() is not None, "the second has stepped back")
    assert other.is_running(directory), "the container lives, whoever watches it"
    other.forget(directory)
    (directory / "go").touch()
    until(lambda: Processes().exit(directory), "the end of the first")
    assert (directory / "starts").read_text() == "x"


def test_the_end_of_a_pod_is_waited_for_before_its_directory_goes(
    start: Start, directory: Path, tmp_path: Path
):
    start("import os, time; open('pid', 'w').write(str(os.getpid())); time.sleep(600)")
    pid = pid_in(directory / "pid")
    store = Store(tmp_path / "objects")
    Kubelet(tmp_path, store, {}, lambda pod, event: None).sweep()  # of a later run, which knows no such pod
    assert not lives(pid)
    assert not directory.exists()


def test_a_reused_pid_is_left_alone(directory: Path):
    record = {"supervisor": {"pid": os.getpid(), "identity": "an earlier process"}, "startedAt": "x"}
    (directory / supervise.PROCESS_FILE).write_text(json.dumps(record))
    processes = Processes()
    processes.stop(directory, at_once=True)
    assert processes.was_started(directory)
    assert not processes.is_running(directory)
