"""Why a Job ended: the most specific class over all its pods' words, else the Job's own Failed message.

The Job's condition names the first failed pod in list order and not in time, and survivors die of the first
one's death. So every pod is heard, and a collateral death never wins over a cause.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from sft_trainer.config import EXIT_CLASSES, FailureClass, Outcome
from sftjob_operator.api.objects import Manifest
from sftjob_operator.batchjob import BatchJob
from sftjob_operator.pods import PodEnd
from sftjob_operator.reports import reason_word, sentence

MESSAGE_LIMIT = 1024

_RANKS = (
    FailureClass.USER_ERROR,
    FailureClass.VOLUME_FULL,
    FailureClass.GPU_OUT_OF_MEMORY,
    FailureClass.HOST_OUT_OF_MEMORY,
    FailureClass.FENCED,
    FailureClass.NETWORK,
    FailureClass.CRASH,
    FailureClass.DISRUPTED,
    FailureClass.INTERRUPTED,
    FailureClass.PEER_LOST,
)
FATAL = (FailureClass.USER_ERROR, FailureClass.VOLUME_FULL)
"""Trying again would end the same way."""
UNCHARGED = (FailureClass.DISRUPTED, FailureClass.INTERRUPTED)
"""The job is not to blame: these do not count towards failurePolicy.maxRestarts."""
_COLLATERAL = (FailureClass.INTERRUPTED, FailureClass.PEER_LOST, FailureClass.HOST_OUT_OF_MEMORY)
_GONE = ("ContainerStatusUnknown", "Unknown")
"""Words of a kubelet and of containerd that, after a reboot, no longer know how a container ended."""
_SIGTERM = 143  # nobody was there to handle it
_EXIT = re.compile(r"failed with exit code (\d+) matching")

_WORDS = {
    FailureClass.CRASH: "the trainer ended unexpectedly",
    FailureClass.USER_ERROR: "the data or the configuration is wrong; the pod's log says what",
    FailureClass.VOLUME_FULL: "no space left on the volume of spec.workspace",
    FailureClass.PEER_LOST: "another pod of the gang was lost",
    FailureClass.INTERRUPTED: "the pod was asked to stop",
    FailureClass.FENCED: "a newer run of this job owns the volume",
    FailureClass.GPU_OUT_OF_MEMORY: "a GPU ran out of memory",
    FailureClass.HOST_OUT_OF_MEMORY: "killed, almost always by the memory limit; raise limits.memory",
    FailureClass.NETWORK: "a download failed",
    FailureClass.DISRUPTED: "the cluster took the pod (eviction, drain, preemption or deletion)",
}


@dataclass(frozen=True)
class Failure:
    """Why something ended."""

    cls: FailureClass
    reason: str
    """The class, or a finer word of the pod's for a user error (InvalidRow)."""
    message: str
    exit_code: int | None = None
    node: str | None = None
    outcome: Outcome | None = None

    @property
    def fatal(self) -> bool:
        """Never tried again."""
        return self.cls in FATAL

    @property
    def charged(self) -> bool:
        """Counts towards failurePolicy.maxRestarts."""
        return self.cls not in UNCHARGED


def failure(job: BatchJob, ends: Sequence[PodEnd], *, stopping: bool = False) -> Failure:
    """Why this Job failed. `stopping`: it was being suspended, and so was meant to end."""
    found = [_of_pod(end) for end in ends if _has_failed(end)]
    own = _of_message(job.failed if job.failed is not None else job.failing)
    heard = own is not None and any(each.exit_code == own.exit_code for each in found)
    candidates = found if own is None or heard else [*found, own]
    if not candidates:
        words = sentence(job.failed or job.failing or "", MESSAGE_LIMIT) or _WORDS[FailureClass.CRASH]
        return Failure(FailureClass.CRASH, FailureClass.CRASH, words)
    worst = min(candidates, key=lambda each: _RANKS.index(each.cls))
    if worst.cls is FailureClass.INTERRUPTED and own is not None and own.cls is FailureClass.PEER_LOST:
        worst = next((each for each in found if each.cls is FailureClass.PEER_LOST), own)
    if stopping and worst.cls not in FATAL:
        cls = FailureClass.INTERRUPTED
        return Failure(cls, cls, "stopped by a suspension", outcome=worst.outcome)
    return worst


def disrupted(message: str, word: str = "Disrupted") -> Failure:
    """A gang that the cluster has taken without leaving a word."""
    return Failure(FailureClass.DISRUPTED, word, message)


def node_lost(pod: Manifest) -> Failure:
    """A node has died with this pod on it (pods.lost_pod)."""
    node = (pod.get("spec") or {}).get("nodeName")
    return disrupted(f"node {node} does not answer and pod {pod['metadata']['name']} cannot end", "NodeLost")


def without_result(what: str) -> Failure:
    """Success without its proof is none."""
    return Failure(FailureClass.CRASH, FailureClass.CRASH, f"every pod exited 0, but {what}")


def _has_failed(end: PodEnd) -> bool:
    return end.exit_code != 0 or end.disrupted


def _of_pod(end: PodEnd) -> Failure:
    cls, outcome = _class(end), end.outcome
    said = outcome is not None and outcome.outcome == "Failed" and outcome.failure_class is cls
    where = f"pod {end.index}" if end.index is not None else "the pod"
    if outcome is not None and said and outcome.message:
        message = sentence(outcome.message, MESSAGE_LIMIT)
    else:
        code = "" if end.exit_code is None else f" (exit code {end.exit_code}{_word(end.word)})"
        message = f"{where}{code}: {_WORDS[cls]}{': ' if end.note else ''}{end.note}"
    reason = reason_word(outcome.reason, cls) if outcome is not None and said else str(cls)
    return Failure(cls, reason, message, end.exit_code, end.node, outcome)


def _class(end: PodEnd) -> FailureClass:
    said = None
    if end.outcome is not None and end.outcome.outcome == "Failed":
        said = end.outcome.failure_class
    cls = said or _by_exit_code(end)
    # Pods that were taken die of it in various ways; what they found wrong themselves still counts.
    if end.disrupted and (said is None or said in _COLLATERAL):
        return FailureClass.DISRUPTED
    killed = cls in (FailureClass.HOST_OUT_OF_MEMORY, FailureClass.DISRUPTED) and end.word != "OOMKilled"
    if end.deleted and said is None and killed:
        return FailureClass.INTERRUPTED  # at the end of its grace period, or before it ran
    return cls


def _by_exit_code(end: PodEnd) -> FailureClass:
    if end.word == "OOMKilled":
        return FailureClass.HOST_OUT_OF_MEMORY
    if end.exit_code is None or end.word in _GONE:
        # Failed without ever running (evicted, preempted, refused by the node), or with a node that went down.
        return FailureClass.DISRUPTED
    return exit_class(end.exit_code)


def exit_class(code: int) -> FailureClass:
    """Class of an exit code; what is not in the contract is a crash."""
    if code == _SIGTERM:
        return FailureClass.INTERRUPTED
    return EXIT_CLASSES.get(code, FailureClass.CRASH)


def _of_message(message: str | None) -> Failure | None:
    """From the Job's Failed condition, word for word as Kubernetes 1.34 writes it."""
    if message is None:
        return None
    words = sentence(message, MESSAGE_LIMIT)
    match = _EXIT.search(message)
    if match is not None:
        code = int(match[1])
        cls = exit_class(code)
        return Failure(cls, cls, f"{_WORDS[cls]} ({words})", code)
    if "has condition DisruptionTarget" in message:
        cls = FailureClass.DISRUPTED
        return Failure(cls, cls, f"{_WORDS[cls]} ({words})")
    return None


def _word(word: str) -> str:
    return f", {word}" if word and word not in ("Error", "Completed") else ""
