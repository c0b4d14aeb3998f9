"""The copy of a rank's log on a volume that is slow, hangs or is full. A pipe that nobody reads plays the volume."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from launching import Pod
from sft_trainer.launcher.logs import BoundedFile

LINE = b"x" * 1023 + b"\n"
MANY = 20_000  # lines, more than pipe and queue hold


@pytest.fixture
def pipe(tmp_path: Path) -> Path:
    os.mkfifo(tmp_path / "rank-0.log")
    return tmp_path / "rank-0.log"


def drain(reader: int) -> bytes:
    os.set_blocking(reader, True)
    with os.fdopen(reader, "rb") as stream:
        return stream.read()


def test_a_volume_that_hangs_costs_lines_and_never_time(pipe: Path) -> None:
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    log = BoundedFile(pipe, limit=10**9)
    for _ in range(MANY):
        log.write(LINE)
    log.close(0.01)
    lines = drain(reader).splitlines(keepends=True)
    notes = [line for line in lines if line != LINE]
    assert notes
    assert all(b"lines are missing here: the volume was too slow" in note for note in notes)
    assert len(lines) - len(notes) + sum(int(note.split()[1]) for note in notes) == MANY


def test_a_volume_that_cannot_even_be_opened_holds_nobody_up(
    pipe: Path, caplog: pytest.LogCaptureFixture
) -> None:
    log = BoundedFile(pipe, limit=10**9)  # opening a pipe waits for its reader
    for _ in range(MANY):
        log.write(LINE)
    log.close(0.01)
    assert "the volume does not take it" in caplog.text
    os.close(os.open(pipe, os.O_RDONLY | os.O_NONBLOCK))  # lets the thread go


def test_a_log_is_cut_between_two_lines(tmp_path: Path) -> None:
    log = BoundedFile(tmp_path / "logs" / "rank-0.log", limit=2500)
    for _ in range(4):
        log.write(LINE)
    log.close(60)
    first, second, note = (tmp_path / "logs" / "rank-0.log").read_bytes().splitlines(keepends=True)
    assert (first, second) == (LINE, LINE)
    assert note == b"... cut here: the log of a rank is kept up to 2500 bytes\n"


@pytest.mark.processes
@pytest.mark.timeout(180)
def test_a_pod_ends_while_its_log_volume_hangs(tmp_path: Path) -> None:
    pod = Pod(tmp_path)
    logs = pod.workspace / "jobs" / "bot" / "logs" / "1"
    logs.mkdir(parents=True)
    os.mkfifo(logs / "rank-0.log")
    outcome = pod.ends("for _ in range(20000): print('x' * 1000)\nfinish()", settings={"drain_seconds": 0.2})
    assert outcome.exit_code == 0
    assert any("the volume does not take it" in line for line in pod.output)
