"""Waiting that ends at once when a rank ends or somebody says stop.

PID 1 has no default reaction to any signal, so everything it obeys is handled here. The handlers only
count; the supervisor's loop acts.
"""

from __future__ import annotations

import ctypes
import logging
import os
import select
import signal
import sys
from types import FrameType

logger = logging.getLogger(__name__)

_PR_SET_CHILD_SUBREAPER = 36


class Signals:
    """Counts requests to stop, and wakes the waiting main thread."""

    def __init__(self) -> None:
        self.stops = 0  # SIGTERM and SIGINT received so far
        self._reader, self._writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def install(self) -> None:
        """Take over SIGTERM, SIGINT and SIGCHLD of this process (main thread only)."""
        signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)

    def wait(self, seconds: float) -> None:
        """Return after `seconds`, or as soon as a signal has come in since the last call."""
        select.select([self._reader], [], [], max(0.0, seconds))
        try:
            while os.read(self._reader, 4096):
                pass
        except BlockingIOError:
            pass

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self.stops += 1


def adopt_orphans() -> None:
    """Make this process the parent of its descendants' orphans, as PID 1 of a container already is."""
    if sys.platform == "linux" and os.getpid() != 1:
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
