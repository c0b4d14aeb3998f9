"""Starting and ending the cluster's long-lived programs, so that even a `kill -9` leaves no stray.

A program is remembered by pid *and* start time (pids are reused), and carries a mark in its
environment, by which it is found when its pid file was never written.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from devcluster import paths

MARK = "SFTJOB_DEVCLUSTER"
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class CommandError(RuntimeError):
    """A command that had to succeed did not; the message holds what it said."""


def say(text: str) -> None:
    """Progress goes to stderr: stdout is for what another program may read."""
    sys.stderr.write(f"devcluster: {text}\n")
    sys.stderr.flush()


def which(program: str) -> str | None:
    """Like shutil.which, but sbin is always looked at: a root shell by `su` has it not on its PATH."""
    return shutil.which(program, path=_search_path())


def run(*argv: str | Path, check: bool = True, stdin: str | None = None) -> str:
    words = [str(word) for word in argv]
    environment = os.environ | {"PATH": _search_path()}
    done = subprocess.run(words, input=stdin, capture_output=True, text=True, env=environment)
    if check and done.returncode != 0:
        raise CommandError(
            f"{' '.join(words)}: exit {done.returncode}: {(done.stderr or done.stdout).strip()}"
        )
    return done.stdout


def spawn(name: str, argv: Sequence[str | Path], environment: Mapping[str, str] | None = None) -> None:
    """Start a program in its own session, unless it already runs.

    posix_spawn rather than Popen: the program outlives us, and a Popen object that goes out of scope
    while its process runs is a ResourceWarning, which the test-suite turns into an error.
    """
    if is_alive(name):
        return
    words = [str(word) for word in argv]
    env = {
        "PATH": SYSTEM_PATH,
        "HOME": str(paths.state()),
        MARK: str(paths.state()),
        **(environment or {}),
    }
    log = paths.logs() / f"{name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        actions = [
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_DUP2, out, 1),
            (os.POSIX_SPAWN_DUP2, out, 2),
            # Else it would hold a lock of whoever called us for as long as the cluster is up.
            *((os.POSIX_SPAWN_CLOSE, number) for number in _inheritable()),
        ]
        pid = os.posix_spawn(which(words[0]) or words[0], words, env, file_actions=actions, setsid=True)
    finally:
        os.close(out)
    record = _record(name)
    record.parent.mkdir(parents=True, exist_ok=True)
    record.write_text(json.dumps({"pid": pid, "start": _start_time(pid)}))


def pid_of(name: str) -> int | None:
    """The pid of a program we started, or None if it has ended."""
    try:
        record = json.loads(_record(name).read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    pid = int(record["pid"])
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)  # ours to reap when the same process started it
    return pid if record["start"] is not None and _start_time(pid) == record["start"] else None


def is_alive(name: str) -> bool:
    return pid_of(name) is not None


def stop(name: str, grace_seconds: float = 5) -> None:
    """End a program: asked first, then killed."""
    for sign, patience in ((signal.SIGTERM, grace_seconds), (signal.SIGKILL, 5.0)):
        pid = pid_of(name)
        if pid is None:
            break
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, sign)
        wait_for(lambda: not is_alive(name), patience, interval=0.02)
    _record(name).unlink(missing_ok=True)


def recorded() -> list[str]:
    return sorted(path.stem for path in (paths.state() / "run").glob("*.json"))


def kill_marked() -> None:
    """Kill whatever carries our mark: what a dying `up` started and never wrote down, and shims."""
    for _ in range(50):
        pids = list(_marked())
        if not pids:
            return
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)


def wait_for(condition: Callable[[], bool], timeout_seconds: float, interval: float = 0.1) -> bool:
    deadline = time.monotonic() + timeout_seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(interval)
    return True


def tail(name: str, lines: int = 15) -> str:
    log = paths.logs() / f"{name}.log"
    if not log.exists():
        return "(no log)"
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])


def _marked() -> Iterator[int]:
    wanted = f"{MARK}={paths.state()}".encode()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):
                if wanted in (entry / "environ").read_bytes().split(b"\0"):
                    yield int(entry.name)


def _inheritable() -> list[int]:
    """Open files that a child gets without being asked, beside the three standard ones."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # that of the listing itself is closed again
            if int(name) > 2 and os.get_inheritable(int(name)):
                found.append(int(name))
    return found


def _search_path() -> str:
    return f"{os.environ.get('PATH', '')}:{SYSTEM_PATH}"


def _record(name: str) -> Path:
    return paths.state() / "run" / f"{name}.json"


def _start_time(pid: int) -> int | None:
    """The kernel's start time of a process in clock ticks; None for no process, or a dead one."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in "ZX" else int(fields[19])
