"""What a rank tells Prometheus, and when. It never stops training.

The series are in series.py; the launcher reads their files at every scrape.
"""

from __future__ import annotations

import errno
import functools
import logging
import math
import os
import resource
import sys
import time
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Concatenate, ParamSpec

from prometheus_client import Gauge

from sft_trainer import config, series
from sft_trainer.config import CheckpointFact

logger = logging.getLogger(__name__)

_ROOM_BYTES = 2**20  # what the files of some ranks may still grow by

P = ParamSpec("P")


def _harmless(method: Callable[Concatenate[Metrics, P], None]) -> Callable[Concatenate[Metrics, P], None]:
    """Swallow whatever `method` raises, after one warning: a full scratch folder must not end a training."""

    @functools.wraps(method)
    def call(self: Metrics, /, *args: P.args, **kwargs: P.kwargs) -> None:
        try:
            _check_room()
            method(self, *args, **kwargs)
        except Exception as error:
            if not self._warned:
                logger.warning("metrics are incomplete, training goes on: %r", error)
            self._warned = True

    return call


class Metrics:
    """The metrics of this rank; every method may be called as often as wanted and never raises."""

    def __init__(self, *, sftjob: str, attempt: int, rank: int, node: str | None = None) -> None:
        """`node` is the Kubernetes node; absent, `$SFTJOB_NODE_NAME` or the pod's index."""
        index = os.environ.get(config.ENV_NODE_INDEX, "0")
        name = node or os.environ.get(config.ENV_NODE_NAME) or index
        self._labels = (sftjob, str(attempt), str(rank), name)
        self._warned = False
        self._peak: float | None = None

    @_harmless
    def started(
        self,
        *,
        total_steps: int,
        resumed_from_step: int,
        precision: str,
        version: str,
        attention: str,
        peak_flops: float | None = None,
        checkpoint: CheckpointFact | None = None,
    ) -> None:
        """The run is about to make its first step (`resumed_from_step` = 0 for a fresh one).

        `peak_flops` is what this rank's device can do, `checkpoint` the newest verified one that lies there.
        """
        series.INFO.labels(*self._labels, version, precision, attention).set(1)
        self._set(series.TOTAL_STEPS, total_steps)
        self._set(series.STEP, resumed_from_step)
        self._set(series.LAST_STEP, time.time())  # until there is one: since when it is waited for
        self._set(series.RESUMED_STEP, resumed_from_step)
        self._peak = peak_flops
        self._set(series.PEAK_FLOPS, peak_flops)
        if checkpoint is not None:
            self._set(series.CHECKPOINT_STEP, checkpoint.step)
            self._set(series.CHECKPOINT_BYTES, checkpoint.bytes)
            self._set(series.CHECKPOINT_TIME, datetime.fromisoformat(checkpoint.time).timestamp())
        counters = [series.TOKENS, series.SUPERVISED, series.PADDED, series.FLOPS]
        for counter in [*counters, series.SKIPPED] if precision == "fp16" else counters:
            counter.labels(*self._labels)
        self._memory()

    @_harmless
    def start(self, phase_seconds: Mapping[str, float]) -> None:
        """The first step ended; what the time since the process began was spent on."""
        for phase, seconds in phase_seconds.items():
            series.START_SECONDS.labels(*self._labels, phase).set(seconds)

    @_harmless
    def step(
        self,
        *,
        step: int,
        loss: float | None,
        learning_rate: float,
        gradient_norm: float | None,
        tokens: int,
        supervised_tokens: int,
        padded_tokens: int,
        step_seconds: float,
        phase_seconds: Mapping[str, float],
        loss_scale: float | None = None,
        flops: float = 0.0,
    ) -> None:
        """One optimizer step ended.

        Token counts and model FLOPs are of this rank and this step; `padded_tokens` is padding only.
        `phase_seconds` maps data_wait, rank_wait, forward, backward and optimizer to their share of
        `step_seconds`.
        """
        self._set(series.STEP, step)
        self._set(series.LAST_STEP, time.time())
        self._set(series.LOSS, loss)
        self._set(series.LEARNING_RATE, learning_rate)
        self._set(series.GRADIENT_NORM, gradient_norm)
        self._set(series.LOSS_SCALE, loss_scale)
        self._set(series.STEP_SECONDS, step_seconds)
        self._set(series.TOKENS_PER_SECOND, tokens / step_seconds if step_seconds > 0 else None)
        for phase, seconds in phase_seconds.items():
            series.PHASE_SECONDS.labels(*self._labels, phase).set(seconds)
        series.TOKENS.labels(*self._labels).inc(tokens)
        series.SUPERVISED.labels(*self._labels).inc(supervised_tokens)
        series.PADDED.labels(*self._labels).inc(padded_tokens)
        series.FLOPS.labels(*self._labels).inc(flops)
        self._set(series.MFU, mfu(flops, step_seconds, self._peak))
        self._memory()

    @_harmless
    def skipped(self) -> None:
        """An optimizer step overflowed and is repeated."""
        series.SKIPPED.labels(*self._labels).inc()

    @_harmless
    def evaluation(self, *, loss: float, seconds: float, perplexity: float | None = None) -> None:
        """An evaluation on the held-out rows ended."""
        self._set(series.EVAL_LOSS, loss)
        self._set(series.EVAL_PERPLEXITY, perplexity)
        self._set(series.EVAL_SECONDS, seconds)

    @_harmless
    def checkpoint(self, *, step: int, seconds: float, size_bytes: int | None = None) -> None:
        """A checkpoint was committed; `size_bytes` is of the whole checkpoint, where this rank knows it."""
        self._set(series.CHECKPOINT_STEP, step)
        self._set(series.CHECKPOINT_SECONDS, seconds)
        self._set(series.CHECKPOINT_BYTES, size_bytes)
        self._set(series.CHECKPOINT_TIME, time.time())

    def _set(self, gauge: Gauge, value: float | None) -> None:
        """Set a gauge; None (not measured in this step) leaves it as it was, NaN is shown."""
        if value is not None:
            gauge.labels(*self._labels).set(value)

    def _memory(self) -> None:
        series.PEAK_MEMORY.labels(*self._labels, "host").set(_highest_resident_bytes())
        resident = _resident_bytes()
        if not math.isnan(resident):
            series.MEMORY.labels(*self._labels, "host").set(resident)
        torch = sys.modules.get("torch")
        if torch is not None and torch.cuda.is_available():
            series.MEMORY.labels(*self._labels, "gpu").set(torch.cuda.memory_reserved())
            series.MEMORY.labels(*self._labels, "gpu_allocated").set(torch.cuda.memory_allocated())
            series.PEAK_MEMORY.labels(*self._labels, "gpu").set(torch.cuda.max_memory_reserved())
            series.PEAK_MEMORY.labels(*self._labels, "gpu_allocated").set(torch.cuda.max_memory_allocated())


def mfu(flops: float, seconds: float, peak: float | None) -> float | None:
    """Model FLOP/s as a share of the device's peak; None where that is not known."""
    return flops / seconds / peak if peak and seconds > 0 else None


def peak_memory_bytes() -> int:
    """Highest memory of this rank so far: of its GPU, on a CPU of its process."""
    torch = sys.modules.get("torch")  # never imported here: the launcher's tools read this module too
    if torch is not None and torch.cuda.is_available():
        return int(torch.cuda.max_memory_reserved())
    return _highest_resident_bytes()


def _highest_resident_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _check_room() -> None:
    """OSError where the folder of the metric files is full.

    They are memory-mapped: writing to a page for which there is no room is no exception but SIGBUS, which
    kills the rank.
    """
    folder = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
    if folder is None:
        return
    room = os.statvfs(folder)
    if room.f_bavail * room.f_frsize < _ROOM_BYTES:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), folder)


def _resident_bytes() -> float:
    """Resident memory of this process; NaN where the system does not say."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * resource.getpagesize()
    except (OSError, ValueError, IndexError):
        return math.nan
