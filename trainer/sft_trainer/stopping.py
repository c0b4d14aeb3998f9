"""SIGTERM: end at once while nothing is at stake, and at the next step boundary while training."""

from __future__ import annotations

import signal
from types import FrameType

from sft_trainer.errors import Interrupted


class StopSignal:
    """Turns SIGTERM into an exception, or, once `defer` was called, into a flag which the group agrees on."""

    def __init__(self) -> None:
        self.requested = False
        self._deferred = False
        signal.signal(signal.SIGTERM, self._arrived)

    def defer(self, deferred: bool) -> None:
        """Whether to wait for the step boundary; a signal that came meanwhile is not lost."""
        self._deferred = deferred
        if self.requested and not deferred:
            raise Interrupted("stopped by SIGTERM")

    def _arrived(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        if not self._deferred:
            raise Interrupted("stopped by SIGTERM before or after training; nothing was lost")
