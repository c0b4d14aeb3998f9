"""Prometheus metrics of one rank. They never stop training.

prometheus_client keeps them in memory-mapped files ($PROMETHEUS_MULTIPROC_DIR, set by the launcher before a
rank starts) which the launcher reads at every scrape. Gauges are of mode `mostrecent`, so there is no `pid`
label and none appears before its first value; counters start at zero with every attempt, which `rate()`
takes as a reset.
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
from typing import Concatenate, ParamSpec

from prometheus_client import CollectorRegistry, Counter, Gauge

from sft_trainer import config

logger = logging.getLogger(__name__)

REGISTRY = CollectorRegistry()
_ROOM_BYTES = 2**20  # what the files of some ranks may still grow by
LABELS = ("sftjob", "attempt", "rank", "node")


def _gauge(name: str, text: str, extra: tuple[str, ...] = ()) -> Gauge:
    return Gauge(
        f"sft_trainer_{name}", text, LABELS + extra, registry=REGISTRY, multiprocess_mode="mostrecent"
    )


def _counter(name: str, text: str) -> Counter:
    return Counter(f"sft_trainer_{name}", text, LABELS, registry=REGISTRY)


INFO = _gauge(
    "info", "Always 1; versions and precision of the run are in the labels.", ("version", "precision")
)
TOTAL_STEPS = _gauge("total_steps", "Optimizer steps of the whole training.")
STEP = _gauge("step", "Optimizer steps finished, those before a resume included.")
LAST_STEP = _gauge("last_step_timestamp_seconds", "Unix time at which the last optimizer step ended.")
LOSS = _gauge("loss", "Mean loss per supervised token of the last global batch.")
LEARNING_RATE = _gauge("learning_rate", "Learning rate of the last optimizer step.")
GRADIENT_NORM = _gauge("gradient_norm", "Global gradient norm of the last optimizer step, before clipping.")
TOKENS_PER_SECOND = _gauge("tokens_per_second", "Real tokens of this rank per second of the last step.")
STEP_SECONDS = _gauge("step_seconds", "Wall time of the last optimizer step.")
PHASE_SECONDS = _gauge("phase_seconds", "Wall time of one phase of the last optimizer step.", ("phase",))
LOSS_SCALE = _gauge("loss_scale", "Factor of the losses of the last optimizer step; only in fp16.")
START_SECONDS = _gauge("start_seconds", "Wall time of one phase of this rank's start.", ("phase",))
EVAL_LOSS = _gauge("eval_loss", "Mean loss per supervised token of the held-out rows.")
EVAL_SECONDS = _gauge("eval_seconds", "Wall time of the last evaluation.")
CHECKPOINT_SECONDS = _gauge("checkpoint_seconds", "Wall time of the last committed checkpoint.")
CHECKPOINT_BYTES = _gauge("checkpoint_bytes", "Size of the last committed checkpoint.")
CHECKPOINT_STEP = _gauge("last_checkpoint_step", "Step of the last committed checkpoint.")
CHECKPOINT_TIME = _gauge("last_checkpoint_timestamp_seconds", "Unix time of the last committed checkpoint.")
MEMORY = _gauge("memory_bytes", "Memory of this rank now.", ("kind",))
PEAK_MEMORY = _gauge("memory_peak_bytes", "Highest memory of this rank so far.", ("kind",))
TOKENS = _counter("tokens", "Real tokens trained on by this rank since the attempt started.")
SUPERVISED = _counter(
    "supervised_tokens", "Tokens that carried loss, by this rank, since the attempt started."
)
PADDED = _counter("padded_tokens", "Padding computed by this rank since the attempt started.")
SKIPPED = _counter(
    "skipped_steps", "Optimizer steps that overflowed in fp16 and were repeated, since the attempt started."
)

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

    @_harmless
    def started(self, *, total_steps: int, resumed_from_step: int, precision: str, version: str) -> None:
        """The run is about to make its first step (`resumed_from_step` = 0 for a fresh one)."""
        INFO.labels(*self._labels, version, precision).set(1)
        self._set(TOTAL_STEPS, total_steps)
        self._set(STEP, resumed_from_step)
        for counter in (TOKENS, SUPERVISED, PADDED, *((SKIPPED,) if precision == "fp16" else ())):
            counter.labels(*self._labels)
        self._memory()

    @_harmless
    def start(self, phase_seconds: Mapping[str, float]) -> None:
        """The first step ended; what the time since the process began was spent on."""
        for phase, seconds in phase_seconds.items():
            START_SECONDS.labels(*self._labels, phase).set(seconds)

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
    ) -> None:
        """One optimizer step ended.

        Token counts are of this rank and this step; `padded_tokens` is padding only. `phase_seconds` maps
        data_wait, forward, backward and optimizer to their share of `step_seconds`.
        """
        self._set(STEP, step)
        self._set(LAST_STEP, time.time())
        self._set(LOSS, loss)
        self._set(LEARNING_RATE, learning_rate)
        self._set(GRADIENT_NORM, gradient_norm)
        self._set(LOSS_SCALE, loss_scale)
        self._set(STEP_SECONDS, step_seconds)
        self._set(TOKENS_PER_SECOND, tokens / step_seconds if step_seconds > 0 else None)
        for phase, seconds in phase_seconds.items():
            PHASE_SECONDS.labels(*self._labels, phase).set(seconds)
        TOKENS.labels(*self._labels).inc(tokens)
        SUPERVISED.labels(*self._labels).inc(supervised_tokens)
        PADDED.labels(*self._labels).inc(padded_tokens)
        self._memory()

    @_harmless
    def skipped(self) -> None:
        """An optimizer step overflowed and is repeated."""
        SKIPPED.labels(*self._labels).inc()

    @_harmless
    def evaluation(self, *, loss: float, seconds: float) -> None:
        """An evaluation on the held-out rows ended."""
        self._set(EVAL_LOSS, loss)
        self._set(EVAL_SECONDS, seconds)

    @_harmless
    def checkpoint(self, *, step: int, seconds: float, size_bytes: int | None = None) -> None:
        """A checkpoint was committed; `size_bytes` is of the whole checkpoint, where this rank knows it."""
        self._set(CHECKPOINT_STEP, step)
        self._set(CHECKPOINT_SECONDS, seconds)
        self._set(CHECKPOINT_BYTES, size_bytes)
        self._set(CHECKPOINT_TIME, time.time())

    def _set(self, gauge: Gauge, value: float | None) -> None:
        """Set a gauge; None (not measured in this step) leaves it as it was, NaN is shown."""
        if value is not None:
            gauge.labels(*self._labels).set(value)

    def _memory(self) -> None:
        host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        PEAK_MEMORY.labels(*self._labels, "host").set(host)
        resident = _resident_bytes()
        if not math.isnan(resident):
            MEMORY.labels(*self._labels, "host").set(resident)
        torch = sys.modules.get("torch")  # never imported here: the launcher's tools read this module too
        if torch is not None and torch.cuda.is_available():
            MEMORY.labels(*self._labels, "gpu").set(torch.cuda.memory_reserved())
            PEAK_MEMORY.labels(*self._labels, "gpu").set(torch.cuda.max_memory_reserved())


def peak_memory_bytes() -> int:
    """Highest memory of this rank so far: of its GPU, or of the process where it has none."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        return int(torch.cuda.max_memory_reserved())
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
