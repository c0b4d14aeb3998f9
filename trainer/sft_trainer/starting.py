"""Where the time from a rank's start to the end of its first step goes: every restart pays it again."""

from __future__ import annotations

import time

import psutil


class Start:
    """A stopwatch over the named phases of a start; it began with the process."""

    def __init__(self) -> None:
        self._clock = time.perf_counter() - max(0.0, time.time() - psutil.Process().create_time())
        self.phases: dict[str, float] = {}

    def lap(self, phase: str) -> None:
        """The time since the last lap, or since the process began, was spent on `phase`."""
        current = time.perf_counter()
        self.phases[phase] = self.phases.get(phase, 0.0) + current - self._clock
        self._clock = current

    def __str__(self) -> str:
        """As `14.2 s: imports 9.1, rendezvous 0.3, ...`, in the order in which phases began."""
        parts = ", ".join(f"{phase} {seconds:.1f}" for phase, seconds in self.phases.items())
        return f"{sum(self.phases.values()):.1f} s: {parts}"
