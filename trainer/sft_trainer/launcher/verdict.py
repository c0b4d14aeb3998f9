"""From the ends of the local ranks to the one Outcome of the pod. Pure.

When one rank fails its peers fail too, with errors that tell nothing. So the most specific class wins, and
among equals the first in time.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Sequence
from dataclasses import dataclass

from sft_trainer.config import EXIT_CLASSES, ExitCode, FailureClass, Outcome, Progress

PRECEDENCE = (
    FailureClass.USER_ERROR,
    FailureClass.VOLUME_FULL,
    FailureClass.GPU_OUT_OF_MEMORY,
    FailureClass.HOST_OUT_OF_MEMORY,
    FailureClass.FENCED,
    FailureClass.NETWORK,
    FailureClass.CRASH,
    FailureClass.INTERRUPTED,
    FailureClass.PEER_LOST,
)
EXIT_CODES: dict[FailureClass, int] = {failure: int(code) for code, failure in EXIT_CLASSES.items()}

_MESSAGE_LIMIT = 1500  # characters of a crash's last words
_WATCHDOG_LIMIT = 400
COLLECTIVE_FAILURES = (  # how NCCL, and torch's ProcessGroupNCCL, say that the others did not come
    "Watchdog caught collective operation timeout",
    "remote process exited or there was a network error",
    "Received a dump signal due to a collective timeout",
    "watchdog got stuck for",
    "To avoid data inconsistency, we are taking the entire process down",
)
_TORCH_PREFIX = re.compile(r"^\[rank\d+\]:\s?")


@dataclass(frozen=True)
class RankEnd:
    """How one rank ended, in the words of the operating system and its own."""

    rank: int
    status: int  # exit code; negative: the number of the signal that killed it
    outcome: Outcome | None  # its final marker
    stderr: tuple[str, ...] = ()  # its last lines
    told: bool = False  # the launcher had told it to end

    @property
    def succeeded(self) -> bool:
        """Exit code zero alone is not success: a rank that leaves early by mistake has that too."""
        return self.status == 0 and self.outcome is not None and self.outcome.outcome == "Succeeded"

    @property
    def was_interrupted(self) -> bool:
        """The group agreed to stop and this rank has saved its part."""
        return self.status == ExitCode.INTERRUPTED


def judge(
    ends: Sequence[RankEnd], *, interrupted: bool, oom_kills: int | None, progress: Progress | None = None
) -> Outcome:
    """The pod's Outcome.

    Args:
        ends: the local ranks (at least one) in the order in which they ended.
        interrupted: the launcher was told to stop before any rank failed.
        oom_kills: processes the kernel killed for memory meanwhile; None when it does not say.
        progress: what rank 0 last reported, on the node that has it.
    """
    failures = [_failure(end, interrupted, oom_kills) for end in ends if not end.succeeded]
    if not failures:
        best = min(ends, key=lambda end: end.rank).outcome
        assert best is not None
        return best.model_copy(update={"exit_code": 0, "failure_class": None})
    worst = min(failures, key=lambda failure: PRECEDENCE.index(_class(failure)))
    if interrupted and _class(worst) is not FailureClass.INTERRUPTED:
        worst = _folded(worst)
    return _with_facts(worst, [end.outcome for end in ends if end.outcome is not None], progress)


def _failure(end: RankEnd, interrupted: bool, oom_kills: int | None) -> Outcome:
    """One rank's failure: in its own words where it left some."""
    own = end.outcome
    if end.told and not interrupted and _says_interrupted(end):
        failure, message = FailureClass.PEER_LOST, f"rank {end.rank} stopped because another rank had failed"
    elif own is not None and own.outcome == "Failed" and own.failure_class in EXIT_CODES:
        return own.model_copy(update={"exit_code": EXIT_CODES[own.failure_class], "rank": end.rank})
    else:
        failure, message = _classified(end, interrupted, oom_kills)
    return Outcome(
        outcome="Failed",
        reason=str(failure),
        failure_class=failure,
        message=message,
        exit_code=EXIT_CODES[failure],
        rank=end.rank,
    )


def _says_interrupted(end: RankEnd) -> bool:
    own = end.outcome.failure_class if end.outcome is not None else None
    return FailureClass.INTERRUPTED in (own, EXIT_CLASSES.get(end.status))


def _classified(end: RankEnd, interrupted: bool, oom_kills: int | None) -> tuple[FailureClass, str]:
    """Class and message from the exit status alone."""
    name = f"rank {end.rank}"
    if end.told and end.status in (-signal.SIGTERM, -signal.SIGKILL):
        if interrupted:
            return FailureClass.INTERRUPTED, f"{name} was ended before it had saved"
        return FailureClass.PEER_LOST, f"{name} was ended because another rank had failed"
    if end.status == ExitCode.KILLED or (end.status == -signal.SIGKILL and oom_kills != 0):
        return FailureClass.HOST_OUT_OF_MEMORY, (
            f"{name} was killed by SIGKILL: the container ran out of memory; "
            "raise the memory in spec.workers.resources, which can be changed at any time"
        )
    if end.status == -signal.SIGKILL:
        return FailureClass.CRASH, f"{name} was killed by SIGKILL and not for memory: somebody sent it"
    if end.status == -signal.SIGABRT and (words := _collective_failure(end.stderr)):
        return FailureClass.PEER_LOST, f"{name} gave up waiting for the others: {words}"
    if end.status < 0:
        return FailureClass.CRASH, _crash(f"{name} was killed by {_signal_name(-end.status)}", end.stderr)
    if end.status == 0:
        return FailureClass.CRASH, f"{name} ended with exit code 0 before the training was finished"
    failure = EXIT_CLASSES.get(end.status, FailureClass.CRASH)
    return failure, _crash(f"{name} ended with exit code {end.status}", end.stderr)


def _collective_failure(stderr: Sequence[str]) -> str | None:
    """What NCCL's watchdog said before it aborted the rank: a collective that others did not take part in.

    The rank's last lines are those of C++'s terminate, so it is looked for in all of them. An error of the GPU
    itself ("CUDA error") is reported by the same watchdog and is the rank's own.
    """
    told = [line for line in stderr if any(words in line for words in COLLECTIVE_FAILURES)]
    if not told or any("CUDA error" in line for line in stderr):
        return None
    return _TORCH_PREFIX.sub("", told[0]).strip()[:_WATCHDOG_LIMIT]


def _folded(worst: Outcome) -> Outcome:
    """A failure on the way out of a requested stop is that stop; what went wrong stays in the message."""
    return worst.model_copy(
        update={
            "reason": str(FailureClass.INTERRUPTED),
            "failure_class": FailureClass.INTERRUPTED,
            "exit_code": int(ExitCode.INTERRUPTED),
            "message": f"stopped on request, and on the way out {worst.reason}: {worst.message}",
        }
    )


def _with_facts(outcome: Outcome, others: Sequence[Outcome], progress: Progress | None) -> Outcome:
    """Fill in how far the training had come from whoever knows it."""
    facts: dict[str, object] = {}
    for field in ("last_verified_step", "resumed_from_step", "checkpoints"):
        known = [getattr(source, field) for source in (outcome, *others, progress) if source is not None]
        facts[field] = next((value for value in known if value not in (None, [])), getattr(outcome, field))
    steps = [source.last_step for source in (outcome, *others) if source.last_step is not None]
    facts["last_step"] = steps[0] if steps else progress.step if progress is not None else None
    return outcome.model_copy(update=facts)


def _crash(what: str, stderr: Sequence[str]) -> str:
    """`what` with the last words of the rank, the exception first; shortened in the middle of nothing."""
    lines = [_TORCH_PREFIX.sub("", line) for line in stderr]
    exception = _exception_line(lines)
    rest = [line.strip() for line in lines if line.strip() and line != exception][-12:]
    text = what if exception is None else f"{what}: {exception}"
    if rest:
        text += " | last lines: " + " / ".join(rest)
    return text if len(text) <= _MESSAGE_LIMIT else text[:_MESSAGE_LIMIT] + " ..."


def _exception_line(lines: Sequence[str]) -> str | None:
    """The line that names the exception of the last traceback."""
    starts = [
        index for index, line in enumerate(lines) if line.startswith("Traceback (most recent call last)")
    ]
    if not starts:
        return None
    return next((line for line in lines[starts[-1] + 1 :] if line and not line[0].isspace()), None)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _class(outcome: Outcome) -> FailureClass:
    assert outcome.failure_class is not None
    return outcome.failure_class
