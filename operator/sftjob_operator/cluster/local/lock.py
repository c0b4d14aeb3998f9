"""One process at a time drives a local cluster: two would start every pod twice."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sftjob_operator.cluster.local.errors import StateError


@contextmanager
def exclusive(state: Path) -> Iterator[None]:
    """Hold the state directory; the kernel lets go of it however this process ends. StateError where it cannot."""
    try:
        state.mkdir(parents=True, exist_ok=True)
        lock = (state / "lock").open("a+")
    except OSError as error:
        raise StateError(
            f"--state {state} cannot be used: {error.strerror}: name a directory that you may write"
        ) from None
    with lock as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "unknown"
            raise StateError(
                f"process {holder} is already running jobs of {state}: wait for it, stop it with Ctrl-C, "
                "or give this one another --state"
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield
