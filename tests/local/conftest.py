"""No test leaves a process behind."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sftjob_operator.cluster.local.processes import Processes


@pytest.fixture(autouse=True)
def _no_process_stays(tmp_path: Path) -> Iterator[None]:
    yield
    processes = Processes()
    for directory in tmp_path.glob("**/pods/*/*"):
        while processes.is_running(directory):
            processes.stop(directory, at_once=True)
            time.sleep(0.02)
