"""How long the phases of a step take, without slowing them.

A GPU works behind the interpreter's back: a clock read there says when work was asked for, not when it was done. So
marks are put into the GPU's own stream and read once the step is over; nothing waits for them before.
"""

from __future__ import annotations

import time
from typing import Any

import torch


class Laps:
    """A stopwatch over phases that follow one another on `device`; it runs from the start."""

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._marks: list[tuple[str, Any]] = [("", self._mark())]

    def end(self, phase: str) -> None:
        """What was asked for since the last mark belongs to `phase`, which may come again."""
        self._marks.append((phase, self._mark()))

    def seconds(self) -> dict[str, float]:
        """Seconds by phase, in the order in which phases began. On a GPU it waits for the last mark."""
        if self._on_gpu:
            self._marks[-1][1].synchronize()
        found: dict[str, float] = {}
        for (_, before), (phase, after) in zip(self._marks, self._marks[1:], strict=False):
            passed = before.elapsed_time(after) / 1000 if self._on_gpu else after - before
            found[phase] = found.get(phase, 0.0) + passed
        return found

    def _mark(self) -> Any:
        if not self._on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event
