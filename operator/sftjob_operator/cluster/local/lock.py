"""One process at a time drives a local cluster: two would start every pod twice."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class StateInUseError(Exception):
    """Another process holds the state directory."""


@contextmanager
def exclusive(state: Path) -> Iterator[None]:
    """Hold the state directory; the kernel lets go of it however this process ends."""
    state.mkdir(parents=True, exist_ok=True)
    with (state / "lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "unknown"
            raise StateInUseError(
                f"process {holder} is already running jobs of {state}: wait for it, stop it with Ctrl-C, "
                "or give this one another --state"
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield
