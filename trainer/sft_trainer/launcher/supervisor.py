"""Runs the ranks of one node to their end: starts, watches, stops and reaps them.

A failed rank takes the others down after a grace period, for they would only wait for it. A request to stop
is passed on, and the ranks get the time to save. Threads of DeepSpeed's launcher, TorchElastic and the like
play no part here: one loop, woken by signals.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sft_trainer.launcher import tether
from sft_trainer.launcher.inputs import read_marker
from sft_trainer.launcher.logs import RankLog
from sft_trainer.launcher.signals import Signals
from sft_trainer.launcher.verdict import RankEnd

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Settings:
    """Times and sizes; the defaults are the product's, tests shorten them."""

    grace_seconds: float = 10.0  # from SIGTERM to SIGKILL for the peers of a failed rank
    stop_seconds: float = 3600.0  # for saving when told to stop; the kubelet may end it sooner
    peer_lost_delay_seconds: float = 5.0  # so that the pod with the cause is the first to fail
    name_deadline_seconds: float = 600.0  # for rank 0's name to appear
    log_limit_bytes: int = 50 * 2**20  # per rank and run, on the volume
    tick_seconds: float = 1.0
    drain_seconds: float = 2.0  # for a rank's last words
    samples_seconds: float = 300.0  # after a success, for asking both models
    report_seconds: float = 120.0  # and for the page about the training


@dataclass(frozen=True)
class RankPlan:
    """What is needed to start one rank."""

    rank: int
    command: Sequence[str]
    environment: Mapping[str, str]
    marker: Path
    log: RankLog


@dataclass
class _Running:
    plan: RankPlan
    process: subprocess.Popen[bytes]
    told: bool = False


class Supervisor:
    """The processes of the local ranks."""

    def __init__(
        self,
        signals: Signals,
        settings: Settings,
        *,
        clock: Callable[[], float],
        beat: Callable[[], None],
    ) -> None:
        self._plans: Sequence[RankPlan] = ()
        self._signals = signals
        self._settings = settings
        self._clock = clock
        self._beat = beat
        self._running: dict[int, _Running] = {}  # by process id
        self._kill_at: float | None = None
        self._failed = False
        self.interrupted = False  # told to stop before any rank failed
        self.ends: list[RankEnd] = []

    def up(self) -> dict[int, bool]:
        """Which ranks are alive."""
        alive = {running.plan.rank for running in tuple(self._running.values())}
        return {plan.rank: plan.rank in alive for plan in self._plans}

    def run(self, plans: Sequence[RankPlan]) -> list[RankEnd]:
        """Start all ranks and return when the last one has ended, in the order in which they did."""
        self._plans = plans
        for plan in plans:
            self._start(plan)
        while self._running:
            self._beat()
            self._reap()
            self._act()
            if self._running:
                self._signals.wait(self._pause())
        self._reap()
        return self.ends

    def _start(self, plan: RankPlan) -> None:
        """In a session of its own, so that a rank and what it starts can be killed together."""
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", tether.__file__, str(os.getpid()), *plan.command],
            env=dict(plan.environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        assert process.stdout is not None
        assert process.stderr is not None
        self._running[process.pid] = _Running(plan, process)
        plan.log.follow(process.stdout, process.stderr)
        logger.info("rank %d started as process %d", plan.rank, process.pid)

    def _reap(self) -> None:
        """Collect every child that has ended: ranks, and orphans of theirs.

        A rank's session is killed while its number is still taken: what it left behind would hold its pipes
        and its memory.
        """
        while (child := _ended_child()) is not None:
            if child in self._running:
                _kill_group(child)
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            if child in self._running:
                self._ended(self._running.pop(child), status)

    def _ended(self, running: _Running, status: int) -> None:
        running.process.returncode = status  # reaped here, not by Popen
        running.plan.log.finish(self._settings.drain_seconds)
        end = RankEnd(
            rank=running.plan.rank,
            status=status,
            outcome=read_marker(running.plan.marker),
            stderr=running.plan.log.stderr_tail,
            told=running.told,
        )
        self.ends.append(end)
        level = logging.INFO if end.succeeded else logging.WARNING
        logger.log(level, "rank %d ended with status %d", end.rank, status)

    def _act(self) -> None:
        """Tell the remaining ranks what follows from what has happened."""
        now = self._clock()
        if not self._failed and any(not end.succeeded and not end.was_interrupted for end in self.ends):
            self._failed = True
            self._tell(signal.SIGTERM)
            self._kill_by(now + self._settings.grace_seconds)
        if self._signals.stops and not self._failed and not self.interrupted:
            logger.info("told to stop: the ranks save and end")
            self.interrupted = True
            self._tell(signal.SIGTERM)
            self._kill_by(now + self._settings.stop_seconds)
        if any(end.was_interrupted for end in self.ends):  # agreed by the group: the others are saving too
            self._kill_by(now + self._settings.stop_seconds)
        if self._signals.stops > 1 or (self._kill_at is not None and now >= self._kill_at):
            self._tell(signal.SIGKILL)

    def _kill_by(self, time: float) -> None:
        self._kill_at = time if self._kill_at is None else min(self._kill_at, time)

    def _tell(self, number: signal.Signals) -> None:
        for running in self._running.values():
            running.told = True
            if number is signal.SIGKILL:
                _kill_group(running.process.pid)
            else:
                os.kill(running.process.pid, number)  # not yet reaped, so the number is still its own

    def _pause(self) -> float:
        if self._kill_at is None:
            return self._settings.tick_seconds
        return min(self._settings.tick_seconds, max(0.01, self._kill_at - self._clock()))


def _ended_child() -> int | None:
    """A child that has ended and is not yet collected, if there is one."""
    try:
        found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return None
    return None if found is None else found.si_pid


def _kill_group(leader: int) -> None:
    """SIGKILL to a rank's session; it may be gone already."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, signal.SIGKILL)
