"""How the cluster's programs are started."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from devcluster import processes

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the cluster is for Linux")


def test_a_program_that_stays_takes_no_open_file_of_its_caller_along(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("SFTJOB_CACHE", str(tmp_path))
    with (tmp_path / "lock").open("w") as lock:
        os.set_inheritable(lock.fileno(), True)
        processes.spawn("sleeper", ["sleep", "60"])
    try:
        pid = processes.pid_of("sleeper")
        kept = {os.readlink(f"/proc/{pid}/fd/{name}") for name in os.listdir(f"/proc/{pid}/fd")}
        assert kept == {"/dev/null", str(tmp_path / "devcluster" / "logs" / "sleeper.log")}
    finally:
        processes.stop("sleeper")
