"""A pod's status in the kubelet's shape, as pure functions of what happened to its process."""

from __future__ import annotations

from pathlib import Path

from sftjob_operator.cluster.base import Manifest
from sftjob_operator.cluster.local import supervise
from sftjob_operator.cluster.local.node import GPU
from sftjob_operator.cluster.local.objects import is_terminal, timestamp
from sftjob_operator.cluster.local.processes import Exit
from sftjob_operator.cluster.local.volumes import NotYetError

TERMINATION_FILE = "termination-log"
TERMINATION_PATH = "/dev/termination-log"
TERMINATION_LIMIT = 4096  # bytes the kubelet keeps
_LOG_FALLBACK = 2048
_LOST_CODE = 137


def waiting(pod: Manifest, why: NotYetError) -> Manifest:
    """Pending: the scheduler's words stand in a condition, the kubelet's in the container's state."""
    if not why.scheduled:
        return _with(pod, "Pending", None, scheduled=(why.reason, why.message))
    state = {"waiting": {"reason": why.reason, "message": why.message}}
    if why.reason == "FailedMount":  # an event in a cluster; the container is being created meanwhile
        state = {"waiting": {"reason": "ContainerCreating", "message": why.message}}
    return _with(pod, "Pending", state)


def running(pod: Manifest) -> Manifest:
    """Its container runs. There are no readiness probes here: running is ready."""
    return _with(pod, "Running", {"running": {"startedAt": timestamp()}}, ready=True)


def ended(pod: Manifest, end: Exit | None, message: str) -> Manifest:
    """Its container has ended; `end` is None when its supervisor died without a word: it was taken, as by a lost node."""
    disruption = None
    if end is None:
        words = "the process that watched the container is gone: was this machine restarted?"
        terminated = {"exitCode": _LOST_CODE, "reason": "ContainerStatusUnknown", "message": message or words}
        disruption = {"reason": "DeletionByPodGC", "message": words}
    else:
        terminated = {
            "exitCode": end.code,
            "reason": end.reason,
            "startedAt": end.started,
            "finishedAt": end.finished,
        }
        if message or end.message:
            terminated["message"] = message or end.message
    phase = "Succeeded" if terminated["exitCode"] == 0 else "Failed"
    return _with(pod, phase, {"terminated": terminated}, disruption=disruption)


def never_started(pod: Manifest) -> Manifest:
    """It was asked to go before its container ran."""
    return _with(pod, "Failed", None)


def termination_message(pod: Manifest, directory: Path) -> str:
    """What the container wrote as its last words, as far as a kubelet reads."""
    data = _tail_or_head(directory / TERMINATION_FILE, TERMINATION_LIMIT, tail=False)
    policy = pod["spec"]["containers"][0].get("terminationMessagePolicy")
    if not data and policy == "FallbackToLogsOnError":
        data = _tail_or_head(directory / supervise.LOG_FILE, _LOG_FALLBACK, tail=True)
    return data


def gpus(pod: Manifest) -> int:
    """GPUs it asks for."""
    resources = pod["spec"]["containers"][0].get("resources", {})
    return int(resources.get("limits", {}).get(GPU, 0))


def holds_resources(other: Manifest, pod: Manifest) -> bool:
    """Whether another pod has what this one might want."""
    is_other = other["metadata"]["uid"] != pod["metadata"]["uid"]
    return is_other and "nodeName" in other["spec"] and not is_terminal(other)


def _tail_or_head(path: Path, limit: int, *, tail: bool) -> str:
    try:
        data = path.read_bytes()
    except OSError:
        return ""
    return (data[-limit:] if tail else data[:limit]).decode(errors="replace")


def _with(
    pod: Manifest,
    phase: str,
    state: Manifest | None,
    *,
    ready: bool = False,
    scheduled: tuple[str, str] | None = None,
    disruption: dict[str, str] | None = None,
) -> Manifest:
    status = {**pod.get("status", {}), "phase": phase}
    placed = {"type": "PodScheduled", "status": "True"}
    if scheduled is not None:
        placed = {"type": "PodScheduled", "status": "False", "reason": scheduled[0], "message": scheduled[1]}
    word = "True" if ready else "False"
    status["conditions"] = [
        placed,
        {"type": "ContainersReady", "status": word},
        {"type": "Ready", "status": word},
    ]
    if disruption is not None:
        status["conditions"].append({"type": "DisruptionTarget", "status": "True", **disruption})
    if state is not None:
        container = pod["spec"]["containers"][0]
        one = {
            "name": container["name"],
            "image": container.get("image", ""),
            "ready": ready,
            "restartCount": 0,
        }
        status["containerStatuses"] = [{**one, "state": state}]
        status.setdefault("startTime", timestamp())
    return {**pod, "status": status}
