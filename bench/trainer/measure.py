"""Runs one contender and watches it from outside, the same way for all.

A contender is a command whose ranks say one line per optimizer step. When a line of rank 0 arrives the time,
the CPU seconds and the peak memory of its processes are read: nothing is measured by what is measured.
"""

from __future__ import annotations

import json
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

_DEADLINE_SECONDS = 1800


@dataclass(frozen=True)
class Step:
    """One optimizer step as a rank reports it: its own counts (all ranks', where only rank 0 speaks), the loss of all."""

    rank: int
    step: int
    tokens: int
    supervised: int
    loss: float


@dataclass(frozen=True)
class Contender:
    """How one is started, and how its lines are understood (None: not about a step)."""

    name: str
    command: Sequence[str]
    environment: Mapping[str, str]
    reads: Callable[[str], Step | None]


@dataclass(frozen=True)
class Figures:
    """What one run gave. Rates are over the steps after the warm-up, memory is of the largest rank."""

    contender: str
    tokens_per_second: float
    supervised_per_second: float
    tokens_per_cpu_second: float
    tokens_per_step: float
    peak_bytes: int
    first_step_seconds: float
    loss: float  # of the last step

    def document(self) -> dict[str, float | str]:
        """For JSON."""
        return asdict(self)


class EndedEarlyError(Exception):
    """A contender did not reach its last step; its log says why."""


@dataclass(frozen=True)
class _Moment:
    seconds: float  # since the start
    cpu_seconds: float
    peak_bytes: int


def run(contender: Contender, steps: int, warm_up: int, log: Path) -> Figures:
    """Start it, wait for its last step, and end it: what it does afterwards (saving, exporting) is not compared."""
    began, moments, seen = time.monotonic(), {}, []
    with (
        log.open("w") as kept,
        subprocess.Popen(
            contender.command,
            env=contender.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as process,
    ):
        assert process.stdout is not None
        timer = threading.Timer(_DEADLINE_SECONDS, _kill, [process.pid])
        timer.start()
        try:
            for line in process.stdout:
                kept.write(line)
                if (step := contender.reads(line)) is None:
                    continue
                seen.append(step)
                if step.rank == 0:
                    moments[step.step] = _moment(process.pid, began)
                if steps in moments and len([s for s in seen if s.step == steps]) >= _speakers(seen):
                    break
        finally:
            timer.cancel()
            _kill(process.pid)
    if steps not in moments:
        raise EndedEarlyError(f"{contender.name} ended before step {steps} (out of memory?); see {log}")
    return _figures(contender.name, seen, moments, steps, warm_up)


def _figures(name: str, seen: list[Step], moments: dict[int, _Moment], steps: int, warm_up: int) -> Figures:
    first, last = moments[warm_up], moments[steps]
    counted = [step for step in seen if warm_up < step.step <= steps]
    tokens, seconds = sum(step.tokens for step in counted), last.seconds - first.seconds
    return Figures(
        contender=name,
        tokens_per_second=tokens / seconds,
        supervised_per_second=sum(step.supervised for step in counted) / seconds,
        tokens_per_cpu_second=tokens / (last.cpu_seconds - first.cpu_seconds),
        tokens_per_step=tokens / (steps - warm_up),
        peak_bytes=last.peak_bytes,
        first_step_seconds=moments[1].seconds,
        loss=next(step.loss for step in seen if (step.rank, step.step) == (0, steps)),
    )


def _speakers(seen: list[Step]) -> int:
    return len({step.rank for step in seen})


def _moment(root: int, began: float) -> _Moment:
    seconds, cpu, peak = time.monotonic() - began, 0.0, 0
    for process in _tree(root):
        with suppress(psutil.Error, OSError):
            times = process.cpu_times()
            cpu += times.user + times.system
            peak = max(peak, _high_water(process.pid))
    return _Moment(seconds, cpu, peak)


def _high_water(process_id: int) -> int:
    status = Path(f"/proc/{process_id}/status").read_text()
    line = next((line for line in status.splitlines() if line.startswith("VmHWM:")), "VmHWM: 0 kB")
    return int(line.split()[1]) * 1024


def _tree(root: int) -> list[psutil.Process]:
    with suppress(psutil.Error):
        process = psutil.Process(root)
        return [process, *process.children(recursive=True)]
    return []


def _kill(root: int) -> None:
    for process in _tree(root):
        with suppress(psutil.Error):
            process.kill()


def json_step(line: str) -> Step | None:
    """A step as floor.py and trl_sft.py print it."""
    if not line.startswith('{"rank"'):
        return None
    with suppress(ValueError, TypeError):
        return Step(**json.loads(line))
    return None
