"""What the launcher's pages answer, and whom the logs are given to."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from sft_trainer.launcher.logs import BoundedFile, RankLog, pod_log
from sft_trainer.launcher.server import Heartbeat, Pages
from sft_trainer.run_folder import RunFolder


def test_health_fails_when_the_supervisor_stands_still(tmp_path: Path) -> None:
    now = [0.0]
    heartbeat = Heartbeat(lambda: now[0])
    pages = Pages(RunFolder(tmp_path), CollectorRegistry(), heartbeat)
    now[0] = 59.0
    assert pages.answer("/healthz", "")[0] == 200
    now[0] = 61.0
    assert pages.answer("/healthz", "")[0] == 503
    heartbeat.beat()
    assert pages.answer("/healthz", "")[0] == 200


def test_progress_is_the_bytes_of_the_file(tmp_path: Path) -> None:
    pages = Pages(RunFolder(tmp_path), CollectorRegistry(), Heartbeat())
    assert pages.answer("/progress", "")[:2] == (404, "application/json")
    (tmp_path / "progress.json").write_bytes(b'{"step": 3, "new": "field"}')
    assert pages.answer("/progress?x=1", "") == (200, "application/json", b'{"step": 3, "new": "field"}')


@pytest.mark.parametrize(
    ("accept", "kind"),
    [("", "text/plain"), ("application/openmetrics-text; version=1.0.0", "application/openmetrics")],
)
def test_metrics_come_in_the_format_that_is_asked_for(tmp_path: Path, accept: str, kind: str) -> None:
    pages = Pages(RunFolder(tmp_path), CollectorRegistry(), Heartbeat())
    status, content_type, _ = pages.answer("/metrics", accept)
    assert (status, content_type.partition(";")[0]) == (200, kind + ("-text" if "open" in kind else ""))


def test_long_lines_are_passed_on_in_pieces_and_the_last_line_needs_no_newline(tmp_path: Path) -> None:
    lines: list[bytes] = []
    log = RankLog(3, BoundedFile(tmp_path / "logs" / "rank-3.log", 10**6), lines.append)
    stdout_reader, stdout_writer = os.pipe()
    stderr_reader, stderr_writer = os.pipe()
    log.follow(os.fdopen(stdout_reader, "rb"), os.fdopen(stderr_reader, "rb"))
    os.write(stdout_writer, b"x" * 20000)
    os.write(stderr_writer, b"bad \xff\nend")
    os.close(stdout_writer)
    os.close(stderr_writer)
    log.finish(30)
    assert all(line.startswith(b"[rank 3] ") and line.endswith(b"\n") for line in lines)
    assert sum(line.count(b"x") for line in lines) == 20000
    assert log.stderr_tail == ("bad \ufffd", "end")
    assert (tmp_path / "logs" / "rank-3.log").stat().st_size == 20000 + len(b"bad \xff\nend")


def test_a_pod_log_nobody_reads_costs_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    write = pod_log(writer)
    for _ in range(3):
        write(b"line\n")
    os.close(writer)
    assert len(caplog.records) == 1
