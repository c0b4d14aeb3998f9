"""One process at a time drives a local cluster: two would start every pod twice."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NamedTuple

from sftjob_operator.cluster.local.errors import StateError


class Holder(NamedTuple):
    """Who drives the jobs of a state directory."""

    pid: int
    """0 where it has not said its number yet."""
    job: str
    """namespace/name of the job it is there for; empty for none."""


@contextmanager
def exclusive(state: Path, job: str = "") -> Iterator[None]:
    """Hold the state directory; the kernel lets go of it however this process ends. StateError where it cannot."""
    try:
        state.mkdir(parents=True, exist_ok=True)
        lock = (state / "lock").open("a+")
    except OSError as error:
        raise StateError(
            f"--state {state} cannot be used: {error.strerror}: name a directory that you may write"
        ) from None
    with lock as file:
        if not _taken(file):
            file.seek(0)
            words = file.read().split()
            who = words[0] if words else "unknown"
            raise StateError(
                f"process {who} is already running jobs of {state}: wait for it, stop it with Ctrl-C, "
                "or give this one another --state"
            ) from None
        file.truncate(0)
        file.write(f"{os.getpid()} {job}".strip())
        file.flush()
        yield


def _taken(file: IO[str]) -> bool:
    """Twice, for `holder` may be looking just now."""
    for pause in (0.05, 0.0):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(pause)
        else:
            return True
    return False


def holder(state: Path) -> Holder | None:
    """Who drives the jobs of this directory now; None for nobody."""
    try:
        with (state / "lock").open() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                pid, _, job = file.read().strip().partition(" ")
                return Holder(int(pid) if pid.isdigit() else 0, job)
    except OSError:
        pass
    return None
