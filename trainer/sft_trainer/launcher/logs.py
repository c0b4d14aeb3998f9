"""Copies what a rank says to the pod's log and, bounded, to the volume.

The Job controller deletes the healthy siblings of a failed pod and their logs with them, hence the copy; a
rank that repeats one warning for a week must not fill the volume, hence the bound. Threads do the copying,
so that a hanging volume or log reader never holds up the supervision.
"""

from __future__ import annotations

import logging
import os
import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import IO

logger = logging.getLogger(__name__)

_LONGEST_LINE = 16384  # bytes; longer ones are passed on in pieces
_TAIL_LINES = 60

Sink = Callable[[bytes], None]


class BoundedFile:
    """A log file that stops growing at `limit` bytes, and gives up quietly when it cannot be written."""

    def __init__(self, path: Path, limit: int) -> None:
        self._path = path
        self._left = limit
        self._limit = limit
        self._lock = threading.Lock()
        self._file: IO[bytes] | None = None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.exists():  # an earlier run of this attempt, before a suspension
                path.replace(path.with_name(f"{path.stem}.previous{path.suffix}"))
            self._file = path.open("wb", buffering=0)
        except OSError as error:
            self._give_up(error)

    def write(self, data: bytes) -> None:
        """Append `data`, up to the limit; a note stands where the rest would be."""
        with self._lock:
            if self._file is None or self._left <= 0:
                return
            if len(data) > self._left:
                data = b"... cut here: the log of a rank is kept up to %d bytes\n" % self._limit
                self._left = 0
            self._left -= len(data)
            try:
                self._file.write(data)
            except OSError as error:
                self._give_up(error)

    def close(self) -> None:
        """Close the file; errors do not matter any more."""
        with self._lock:
            if self._file is not None:
                try:
                    self._file.close()
                except OSError as error:
                    logger.debug("closing %s: %s", self._path, error)
                self._file = None

    def _give_up(self, error: OSError) -> None:
        logger.warning("the log %s ends here, training goes on: %s", self._path, error)
        self._file = None


class RankLog:
    """The two streams of one rank, each copied by a thread until its end."""

    def __init__(self, rank: int, file: BoundedFile, pod_log: Sink) -> None:
        self._prefix = f"[rank {rank}] ".encode()
        self._file = file
        self._pod_log = pod_log
        self._tail: deque[str] = deque(maxlen=_TAIL_LINES)
        self._threads: list[threading.Thread] = []
        self._name = f"rank-{rank}"

    def follow(self, stdout: IO[bytes], stderr: IO[bytes]) -> None:
        """Start copying both streams of the rank."""
        for stream, keep in ((stdout, False), (stderr, True)):
            thread = threading.Thread(target=self._copy, args=(stream, keep), name=self._name, daemon=True)
            thread.start()
            self._threads.append(thread)

    def finish(self, seconds: float) -> None:
        """Wait for what the rank said last, but not for a grandchild which still holds the pipe."""
        for thread in self._threads:
            thread.join(seconds)
        self._file.close()

    @property
    def stderr_tail(self) -> tuple[str, ...]:
        """The last lines the rank wrote to stderr."""
        return tuple(self._tail)

    def _copy(self, stream: IO[bytes], keep: bool) -> None:
        with stream:
            while line := stream.readline(_LONGEST_LINE):
                if keep:
                    self._tail.append(line.decode("utf-8", errors="replace").rstrip("\r\n"))
                self._pod_log(self._prefix + line + (b"" if line.endswith(b"\n") else b"\n"))
                self._file.write(line)


def pod_log(descriptor: int = 1) -> Sink:
    """Writes whole lines to the pod's stdout; a reader that went away costs one warning.

    Past Python's buffer, whose lock must not be held by a thread while the interpreter leaves.
    """
    lock = threading.Lock()
    open_ = True

    def write(line: bytes) -> None:
        nonlocal open_
        with lock:
            while line and open_:
                try:
                    line = line[os.write(descriptor, line) :]
                except OSError as error:
                    open_ = False
                    logger.warning("the pod's log ends here, training goes on: %s", error)

    return write
