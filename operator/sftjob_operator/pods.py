"""A pod as we read it: how its trainer container ended, or why it does not run, in Kubernetes' own words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sft_trainer.config import Outcome
from sftjob_operator.api import names
from sftjob_operator.api.objects import Manifest, condition, is_true
from sftjob_operator.batchjob import BatchJob
from sftjob_operator.reports import parse_time, read_outcome, sentence

_INDEX = "batch.kubernetes.io/job-completion-index"
_IMAGE_REASONS = (
    "ErrImagePull",
    "ImagePullBackOff",
    "ErrImageNeverPull",
    "InvalidImageName",
    "ImageInspectError",
    "RegistryUnavailable",
    "SignatureValidationFailed",
)

# Of the scheduler: a claim without a volume, and a provisioner that it has waited for in vain.
_UNBOUND = ("unbound immediate PersistentVolumeClaims", "VolumeBinding")

_SIDECAR_SECONDS = 120.0  # one that ends by itself has done so by then


@dataclass(frozen=True)
class Trouble:
    """Why a pod does not run: reason for the Running condition, and a sentence."""

    reason: str
    message: str


@dataclass(frozen=True)
class PodEnd:
    """How a pod's container ended."""

    index: int | None
    node: str | None
    exit_code: int | None
    """None: the container never ran, or nobody knows."""
    word: str
    """The kubelet's reason: Error, OOMKilled, Completed, Evicted, …"""
    outcome: Outcome | None
    note: str
    """The raw message where it is no Outcome."""
    disrupted: bool
    """The cluster took the pod (condition DisruptionTarget)."""
    deleted: bool
    """Someone deleted the pod."""


def of_job(pods: Sequence[Manifest], job: BatchJob) -> list[Manifest]:
    """The pods that belong to this Job, and not to another one with the same labels; by index."""
    mine = [pod for pod in pods if _belongs(pod, job)]
    return sorted(mine, key=lambda pod: (_index(pod) or 0, pod["metadata"]["name"]))


def pod_end(pod: Manifest) -> PodEnd | None:
    """How it ended; None while it has not."""
    status = pod.get("status") or {}
    terminated = ((_container(pod) or {}).get("state") or {}).get("terminated")
    if terminated is None and status.get("phase") not in ("Failed", "Succeeded"):
        return None
    ended: dict[str, Any] = terminated or {}
    message = str(ended.get("message") or "")
    outcome = read_outcome(message)
    return PodEnd(
        index=_index(pod),
        node=(pod.get("spec") or {}).get("nodeName"),
        exit_code=ended.get("exitCode"),
        word=str(ended.get("reason") or status.get("reason") or ""),
        outcome=outcome,
        note="" if outcome else sentence(message or str(status.get("message") or ""), 300),
        disrupted=is_true(pod, "DisruptionTarget"),
        deleted=pod["metadata"].get("deletionTimestamp") is not None,
    )


def trouble(pods: Sequence[Manifest], job: BatchJob, now: datetime) -> Trouble:
    """Why not every pod runs: the first pod that says why, else what is missing."""
    lost = lost_pod(pods, now)
    if lost is not None:
        return Trouble(
            "NodeLost", f"{_name(lost)} on node {_node(lost)} should be gone, but its node does not answer"
        )
    found = [why for why in (pod_trouble(pod) for pod in pods) if why is not None]
    for reason in ("ImagePull", "ContainerConfig", "VolumeMissing", "VolumePending", "Unschedulable"):
        for why in found:
            if why.reason == reason:
                return why
    if found:
        return found[0]
    ends = [end for end in map(pod_end, pods) if end is not None]
    if ends:  # and the Job's controller has not said so yet
        well = all(end.exit_code == 0 for end in ends)
        words = f"{len(ends)} of {job.pods} pods have ended{_held_up(pods, now)}"
        return Trouble("Finishing" if well else "Stopping", words)
    if len(pods) < job.pods - job.succeeded:
        return Trouble(
            "PodsNotCreated",
            f"{len(pods)} of {job.pods} pods exist: kubectl describe job {job.name} says why",
        )
    return Trouble("ContainerCreating", f"{job.ready} of {job.pods} pods are ready")


def _held_up(pods: Sequence[Manifest], now: datetime) -> str:
    """Which containers keep a pod, and with it the job, long after ours has ended; empty where none does."""
    for pod in pods:
        ended = ((_container(pod) or {}).get("state") or {}).get("terminated") or {}
        at = parse_time(ended.get("finishedAt"))
        others = [
            status["name"]
            for status in (pod.get("status") or {}).get("containerStatuses") or ()
            if status["name"] != names.CONTAINER and "running" in (status.get("state") or {})
        ]
        if others and at is not None and (now - at).total_seconds() >= _SIDECAR_SECONDS:
            return (
                f"; {_name(pod)} cannot end, for {', '.join(others)} still runs in it: have nothing injected into these "
                "pods, or a sidecar that ends with them (an init container with restartPolicy: Always)"
            )
    return ""


def lost_pod(pods: Sequence[Manifest], now: datetime) -> Manifest | None:
    """A pod whose node has died under it."""
    return next(iter(lost_pods(pods, now)), None)


def lost_pods(pods: Sequence[Manifest], now: datetime) -> list[Manifest]:
    """Those that should have been gone for half a minute and are still there: their nodes do not answer."""
    return [pod for pod in pods if _is_lost(pod, now)]


def still_training(pods: Sequence[Manifest], now: datetime) -> list[Manifest]:
    """Training pods of any Job that have not ended, but for those that are lost: the fence keeps them from committing."""
    return [
        pod
        for pod in pods
        if pod["metadata"].get("labels", {}).get(names.LABEL_ROLE) == names.ROLE_TRAIN
        and any(owner.get("kind") == "Job" for owner in pod["metadata"].get("ownerReferences") or ())
        and pod_end(pod) is None
        and not _is_lost(pod, now)
    ]


def named(pods: Sequence[Manifest]) -> str:
    """The first three of them, with their nodes, and how many more."""
    more = f" and {len(pods) - 3} more" if len(pods) > 3 else ""
    return ", ".join(f"{_name(pod)} on node {_node(pod)}" for pod in pods[:3]) + more


def _is_lost(pod: Manifest, now: datetime) -> bool:
    due = parse_time(pod["metadata"].get("deletionTimestamp"))
    phase = (pod.get("status") or {}).get("phase")
    alive = phase in ("Running", "Pending", "Unknown")
    return due is not None and alive and (now - due).total_seconds() > 30


def pod_trouble(pod: Manifest) -> Trouble | None:
    """Why this pod does not run; None when it does, has ended, or nobody says."""
    scheduled = condition(pod, "PodScheduled")
    if scheduled.get("status") == "False":
        words = sentence(str(scheduled.get("message") or scheduled.get("reason") or ""), 700)
        missing = "persistentvolumeclaim" in words and "not found" in words
        reason = "VolumeMissing" if missing else "Unschedulable"
        if any(part in words for part in _UNBOUND):
            reason, words = "VolumePending", f"{words}; kubectl describe pvc says why the claim has no volume"
        return Trouble(reason, f"{_name(pod)}: {words}")
    container = _container(pod)
    waiting = ((container or {}).get("state") or {}).get("waiting") or {}
    word, words = str(waiting.get("reason") or ""), sentence(str(waiting.get("message") or ""), 700)
    if word in _IMAGE_REASONS:
        image = (container or {}).get("image") or (pod.get("spec") or {}).get("containers", [{}])[0].get(
            "image", ""
        )
        return Trouble("ImagePull", f"{_name(pod)}: image {image}: {word}{': ' if words else ''}{words}")
    if word in ("CreateContainerConfigError", "CreateContainerError", "RunContainerError"):
        return Trouble("ContainerConfig", f"{_name(pod)}: {word}{': ' if words else ''}{words}")
    ready = condition(pod, "Ready")
    if ready.get("status") == "Unknown" or ready.get("reason") == "NodeNotReady":
        return Trouble("NodeNotReady", f"{_name(pod)}: node {_node(pod)} does not answer")
    if word == "ContainerCreating" and words:  # a kubelet says it in an Event, LocalCluster here
        return Trouble("VolumeMissing", f"{_name(pod)}: {words}")
    if (pod.get("status") or {}).get("phase") == "Pending":
        return Trouble("ContainerCreating", f"{_name(pod)} on node {_node(pod)} is being created")
    return None


def _belongs(pod: Manifest, job: BatchJob) -> bool:
    owners = pod["metadata"].get("ownerReferences") or ()
    return any(owner.get("kind") == "Job" and owner.get("uid") == job.uid for owner in owners)


def _container(pod: Manifest) -> Manifest | None:
    statuses: list[Manifest] = (pod.get("status") or {}).get("containerStatuses") or []
    return next((status for status in statuses if status.get("name") == names.CONTAINER), None)


def _index(pod: Manifest) -> int | None:
    metadata = pod["metadata"]
    text = str(
        (metadata.get("annotations") or {}).get(_INDEX) or (metadata.get("labels") or {}).get(_INDEX) or ""
    )
    return int(text) if text.isdigit() else None


def _name(pod: Manifest) -> str:
    return f"pod {pod['metadata']['name']}"


def _node(pod: Manifest) -> str:
    return str((pod.get("spec") or {}).get("nodeName") or "?")
