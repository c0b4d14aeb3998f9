"""The operating-system processes of local pods: started in a session of their own, known by pid and start time.

Nothing is ever ended by its name or by a bare pid: a pid that now belongs to another process is left alone.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sftjob_operator.cluster.local import supervise

END_SECONDS = 5.0  # SIGKILL works at once, but on a process that hangs in the kernel


@dataclass(frozen=True)
class Exit:
    """How a container ended."""

    code: int
    reason: str
    message: str
    started: str
    finished: str


class Processes:
    """The supervisors of all pods, children of this process or of an earlier one."""

    def __init__(self) -> None:
        self._children: dict[Path, subprocess.Popen[bytes]] = {}

    def start(self, directory: Path) -> None:
        """Start the container that `directory`/container.json describes."""
        with (directory / "supervisor.log").open("ab") as log:
            self._children[directory] = subprocess.Popen(
                [sys.executable, "-I", "-S", supervise.__file__, str(directory)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=directory,
                env={"PATH": os.environ.get("PATH", os.defpath)},
                start_new_session=True,
            )

    def was_started(self, directory: Path) -> bool:
        """Whether a supervisor was ever started here, by this process or an earlier one."""
        return directory in self._children or (directory / supervise.PROCESS_FILE).exists()

    def is_running(self, directory: Path) -> bool:
        """Whether a supervisor still lives: our child, or the one for which our child has stepped back."""
        child = self._children.get(directory)
        is_ours = child is not None and child.poll() is None
        return is_ours or self._pid(directory) is not None

    def exit(self, directory: Path) -> Exit | None:
        """How the container ended; None while it runs."""
        end = _read(directory / supervise.EXIT_FILE)
        if end is None:
            return None
        code = int(end["exitCode"])
        reason = end["reason"] or ("Completed" if code == 0 else "Error")
        return Exit(code, reason, end["message"], end["startedAt"], end["finishedAt"])

    def stop(self, directory: Path, *, at_once: bool = False) -> None:
        """SIGTERM, and SIGKILL after the pod's grace period or at once. Asking again changes nothing."""
        pid = self._pid(directory)
        if pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGUSR1 if at_once else signal.SIGTERM)

    def end(self, directory: Path) -> None:
        """Stop it at once and wait, so that nothing runs in a directory that is removed next."""
        deadline = time.monotonic() + END_SECONDS
        while self.is_running(directory) and time.monotonic() < deadline:
            self.stop(directory, at_once=True)
            time.sleep(0.02)
        self.forget(directory)

    def forget(self, directory: Path) -> None:
        """The pod is gone."""
        child = self._children.pop(directory, None)
        if child is not None:
            child.wait()

    def _pid(self, directory: Path) -> int | None:
        record = _read(directory / supervise.PROCESS_FILE)
        if record is None:
            return None
        pid, recorded = int(record["supervisor"]["pid"]), record["supervisor"]["identity"]
        return pid if recorded is not None and supervise.identity(pid) == recorded else None


def _read(path: Path) -> dict[str, Any] | None:
    try:
        value: dict[str, Any] = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    return value
