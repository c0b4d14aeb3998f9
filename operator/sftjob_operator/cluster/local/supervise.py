"""PID 1's place in a local pod: `python -I -S supervise.py POD_DIRECTORY` runs one container and records its end.

`sftjob run` may be killed at any moment, and the exit code of a process that is not one's child cannot be had. So
each container has this small parent: it outlives `sftjob run`, writes the exit code where the next run finds it,
passes SIGTERM on, kills after the grace period, and leaves no process of the pod behind. Only the standard library,
and little of it: it is started once per pod. It is also the one place that knows how a process is identified.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path

CONTAINER_FILE = "container.json"  # argv, env, cwd, graceSeconds: written before the start, by the kubelet
PROCESS_FILE = "process.json"  # who runs: {supervisor: {pid, identity}, startedAt}
EXIT_FILE = "exit.json"  # how it ended: {exitCode, startedAt, finishedAt, reason, message}
LOG_FILE = "container.log"
LOCK_FILE = "supervisor.lock"

_START_ERROR = 128  # kubelet's exit code of a container that could not be started
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36


def identity(pid: int) -> str | None:
    """What tells this process from a later one with the same pid; None when there is none (or only its zombie)."""
    try:
        words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return None if sys.platform == "linux" else _identity_from_ps(pid)
    return None if words[0] in "ZX" else f"{boot}/{words[19]}"


def _identity_from_ps(pid: int) -> str | None:
    done = subprocess.run(
        ["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True, check=False
    )
    return done.stdout.strip() or None


def write_json(path: Path, value: object) -> None:
    """The whole file or none of it, also when the machine stops."""
    draft = path.with_name(f"{path.name}.{os.getpid()}")
    with draft.open("w") as file:
        json.dump(value, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)


def _now() -> str:
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")  # noqa: UP017 - also run by older Pythons


class _Supervisor:
    def __init__(self, grace_seconds: float) -> None:
        self._grace = grace_seconds
        self._deadline: float | None = None
        self._stop = self._kill = False
        self._reader, self._writer = os.pipe()
        for end in (self._reader, self._writer):
            os.set_blocking(end, False)

    def install(self) -> None:
        signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGTERM, lambda *_: setattr(self, "_stop", True))
        signal.signal(signal.SIGUSR1, lambda *_: setattr(self, "_kill", True))
        for ignored in (signal.SIGINT, signal.SIGHUP):
            signal.signal(ignored, signal.SIG_IGN)

    def watch(self, main: int) -> int:
        """Until the main process has ended; its exit code as a container's."""
        while True:
            code = self._reap(main)
            if code is not None:
                return code
            if self._stop and self._deadline is None:
                self._deadline = time.monotonic() + self._grace
                _signal(main, signal.SIGTERM)
            left = None if self._deadline is None else self._deadline - time.monotonic()
            if self._kill or (left is not None and left <= 0):
                _kill_children()
                left = 0.05
            self._sleep(left)

    def end_all(self) -> None:
        """A container's processes end with its first one; orphans are ours, for we are the subreaper."""
        while True:
            _kill_children()
            try:
                if os.waitpid(-1, os.WNOHANG)[0] == 0:
                    self._sleep(0.02)
            except ChildProcessError:
                return

    def _reap(self, main: int) -> int | None:
        with contextlib.suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0] != 0:
                if ended[0] == main:
                    status = ended[1]
                    return 128 + os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
        return None

    def _sleep(self, seconds: float | None) -> None:
        select.select([self._reader], [], [], seconds)
        with contextlib.suppress(BlockingIOError):
            while os.read(self._reader, 512):
                pass


def _signal(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _kill_children() -> None:
    me = os.getpid()
    try:
        children = [int(word) for word in Path(f"/proc/self/task/{me}/children").read_text().split()]
    except OSError:
        done = subprocess.run(["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True, check=False)
        pairs = (line.split() for line in done.stdout.splitlines())
        children = [int(pid) for pid, parent in pairs if int(parent) == me]
    for pid in children:
        _signal(pid, signal.SIGKILL)


def _bind_to_parent() -> Callable[[], None]:
    """For the child between fork and exec (this process has one thread): it dies when its supervisor does."""
    if sys.platform != "linux":
        return lambda: None
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    return lambda: libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def _run(directory: Path) -> None:
    container = json.loads((directory / CONTAINER_FILE).read_text())
    supervisor = _Supervisor(container["graceSeconds"])
    supervisor.install()
    started = _now()
    me = {"pid": os.getpid(), "identity": identity(os.getpid())}
    write_json(directory / PROCESS_FILE, {"supervisor": me, "startedAt": started})
    end: dict[str, object] = {"startedAt": started, "reason": None, "message": ""}
    with (directory / LOG_FILE).open("ab") as log:
        try:
            process = subprocess.Popen(
                container["argv"],
                env=container["env"],
                cwd=container["cwd"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=_bind_to_parent(),
            )
        except OSError as error:
            message = f'exec: "{container["argv"][0]}": {error.strerror}'
            end |= {"exitCode": _START_ERROR, "reason": "StartError", "message": message}
        else:
            end["exitCode"] = process.returncode = supervisor.watch(process.pid)
            supervisor.end_all()
    write_json(directory / EXIT_FILE, {**end, "finishedAt": _now()})


def main(directory: Path) -> None:
    """Run the container of this pod, unless another supervisor does or did."""
    with (directory / LOCK_FILE).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        if not (directory / EXIT_FILE).exists():
            _run(directory)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
