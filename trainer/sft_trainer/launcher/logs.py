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
_TAIL_LINES = 400  # an abort prints the stacks of all threads behind the words that tell why
_WAITING_BYTES = 4 * 2**20  # of one rank, for a volume that is busy

Sink = Callable[[bytes], None]


class BoundedFile:
    """A log file that stops growing at `limit` bytes, and never makes its writer wait.

    A thread of its own does all that touches the volume, opening included. What a slow or hanging volume does
    not take within `_WAITING_BYTES` is dropped, and a line says how much; errors end the log quietly.
    """

    def __init__(self, path: Path, limit: int) -> None:
        self._path = path
        self._limit = limit
        self._waiting = bytearray()
        self._dropped = 0  # lines
        self._closed = False  # no more lines come
        self._ended = False  # no more lines are wanted: the limit, or an error
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name=path.stem, daemon=True)
        self._thread.start()

    def write(self, line: bytes) -> None:
        """Have `line` appended, soon; a note stands where lines are missing."""
        with self._changed:
            if self._ended or self._closed:
                return
            if len(self._waiting) + len(line) > _WAITING_BYTES:
                self._dropped += 1
                return
            self._waiting += line
            self._changed.notify()

    def close(self, seconds: float) -> None:
        """Wait for the last lines, but not for a volume that hangs."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join(seconds)
        if self._thread.is_alive():
            logger.warning("the end of the log %s is missing: the volume does not take it", self._path)

    def _run(self) -> None:
        left = self._limit
        try:
            with self._open() as file:
                while data := self._next():
                    if len(data) > left:
                        whole_lines = data.rfind(b"\n", 0, left) + 1
                        note = b"... cut here: the log of a rank is kept up to %d bytes\n" % self._limit
                        data, self._ended = data[:whole_lines] + note, True
                    left -= len(data)
                    _write(file, data)
                    if self._ended:
                        return
        except OSError as error:
            self._ended = True
            logger.warning("the log %s ends here, training goes on: %s", self._path, error)

    def _open(self) -> IO[bytes]:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        if self._path.is_file():  # an earlier run of this attempt, before a suspension
            self._path.replace(self._path.with_name(f"{self._path.stem}.previous{self._path.suffix}"))
        return self._path.open("wb", buffering=0)

    def _next(self) -> bytes:
        """All lines that wait, as soon as there are any; empty at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._dropped or self._closed)
            data = bytes(self._waiting)
            self._waiting.clear()
            if self._dropped:
                data += b"... %d lines are missing here: the volume was too slow\n" % self._dropped
                self._dropped = 0
            return data


def _write(file: IO[bytes], data: bytes) -> None:
    """All of `data`: an unbuffered file may take a part of it."""
    while data:
        data = data[file.write(data) :]


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
        self._file.close(seconds)

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
