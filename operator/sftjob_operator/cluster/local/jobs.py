"""The Job controller as a pure function: what becomes of a Job and its pods, as batch/v1 does it in Kubernetes 1.34.

Indexed and plain completions, podFailurePolicy, backoffLimit, suspend, deadline. A pod carries the tracking finalizer
until its end has been counted. What a suspension ends is not counted, but a FailJob rule takes it all the same:
Kubernetes 1.34 looks at every failed pod it still sees (measured), so a Job whose pods leave with such a code fails.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from sftjob_operator.api.objects import condition, is_finished, is_true
from sftjob_operator.cluster.base import Manifest
from sftjob_operator.cluster.local import failures
from sftjob_operator.cluster.local.jobpods import INDEX, TRACKING
from sftjob_operator.cluster.local.objects import is_terminal, is_terminating, parse_timestamp, timestamp


@dataclass
class Sync:
    """What is to be done. Pods are given by name; `create` lists completion indexes (None: not Indexed)."""

    status: Manifest
    create: list[int | None] = field(default_factory=list)
    delete: list[str] = field(default_factory=list)
    release: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Gang:
    """The pods of a Job, sorted by what they do."""

    active: list[Manifest]
    terminating: list[Manifest]
    succeeded: list[Manifest]
    failed: list[Manifest]
    """Both not counted yet."""
    all_failed: list[Manifest]

    @classmethod
    def of(cls, pods: Sequence[Manifest]) -> _Gang:
        living = [pod for pod in pods if not is_terminal(pod)]
        ended = [
            pod for pod in pods if is_terminal(pod) and TRACKING in pod["metadata"].get("finalizers", [])
        ]
        return cls(
            active=[pod for pod in living if not is_terminating(pod)],
            terminating=[pod for pod in living if is_terminating(pod)],
            succeeded=[pod for pod in ended if pod["status"]["phase"] == "Succeeded"],
            failed=[pod for pod in ended if pod["status"]["phase"] == "Failed"],
            all_failed=[pod for pod in pods if pod["status"]["phase"] == "Failed"],
        )


def sync(job: Manifest, pods: Sequence[Manifest], now: datetime) -> Sync:
    """One look at a Job; the next one may follow at once, nothing is done twice."""
    gang = _Gang.of(pods)
    if is_finished(job):
        release = [_name(pod) for pod in (*gang.succeeded, *gang.failed)]
        return Sync(status=job.get("status", {}), release=release, delete=[_name(pod) for pod in gang.active])
    result = Sync(
        status={**job.get("status", {}), "conditions": list(job.get("status", {}).get("conditions", []))}
    )
    spec, status = job["spec"], result.status
    if "startTime" not in status and not spec["suspend"]:
        status["startTime"] = timestamp(now)
    done = _count(job, gang, result)
    failure = _failure(job, gang, status, now)
    if failure is not None:
        _fail(gang, result, failure, now)
    elif spec["suspend"]:
        _set(status, "Suspended", "True", "JobSuspended", "Job suspended", now)
        result.delete = [_name(pod) for pod in gang.active]
        result.release += result.delete
    else:
        if is_true({"status": status}, "Suspended"):
            _set(status, "Suspended", "False", "JobResumed", "Job resumed", now)
            status["startTime"] = timestamp(now)
        result.create = _missing(spec, gang, done)
        if len(done) >= spec["completions"] and not gang.active and not gang.terminating:
            words = ("CompletionsReached", "Reached expected number of succeeded pods")
            _set(status, "SuccessCriteriaMet", "True", *words, now)
            _set(status, "Complete", "True", *words, now)
            status["completionTime"] = timestamp(now)
    gone = set(result.delete)
    left = [pod for pod in gang.active if _name(pod) not in gone]
    status["active"] = len(left) + len(result.create)
    status["ready"] = sum(is_true(pod, "Ready") for pod in left)
    status["terminating"] = len(gang.terminating) + len(gone)
    return result


def _count(job: Manifest, gang: _Gang, result: Sync) -> list[int]:
    """Book the pods that have ended; returns the completed indexes (plain Jobs: as many numbers as successes)."""
    status = result.status
    if job["spec"]["completionMode"] == "Indexed":
        done = set(parse_indexes(status.get("completedIndexes", "")))
        done |= {int(pod["metadata"]["annotations"][INDEX]) for pod in gang.succeeded}
        status["completedIndexes"] = format_indexes(sorted(done))
    else:
        done = set(range(status.get("succeeded", 0) + len(gang.succeeded)))
    policy = job["spec"].get("podFailurePolicy")
    status["succeeded"] = len(done)
    status["failed"] = status.get("failed", 0) + sum(failures.is_counted(policy, pod) for pod in gang.failed)
    result.release = [_name(pod) for pod in (*gang.succeeded, *gang.failed)]
    return sorted(done)


def _failure(job: Manifest, gang: _Gang, status: Manifest, now: datetime) -> tuple[str, str] | None:
    """Reason and message, once the Job has failed."""
    spec, before = job["spec"], condition(job, "FailureTarget")
    if before:
        return before["reason"], before["message"]
    message = failures.fail_message(spec.get("podFailurePolicy"), gang.all_failed)
    if message is not None:
        return "PodFailurePolicy", message
    if status["failed"] > spec["backoffLimit"]:
        return "BackoffLimitExceeded", "Job has reached the specified backoff limit"
    limit, start = spec.get("activeDeadlineSeconds"), status.get("startTime")
    if limit is not None and start is not None and not spec["suspend"]:
        if now - parse_timestamp(start) >= timedelta(seconds=limit):
            return "DeadlineExceeded", "Job was active longer than specified deadline"
    return None


def _fail(gang: _Gang, result: Sync, failure: tuple[str, str], now: datetime) -> None:
    """The healthy siblings go; the Job has Failed when the last of them is down."""
    _set(result.status, "FailureTarget", "True", *failure, now)
    result.delete = [_name(pod) for pod in gang.active]
    if not gang.active and not gang.terminating:
        _set(result.status, "Failed", "True", *failure, now)


def _missing(spec: Manifest, gang: _Gang, done: list[int]) -> list[int | None]:
    """Which pods to create. A replacement waits for its predecessor's end when podReplacementPolicy says so."""
    held = gang.active + (gang.terminating if spec["podReplacementPolicy"] == "Failed" else [])
    room = min(spec["parallelism"], spec["completions"] - len(done)) - len(held)
    if spec["completionMode"] != "Indexed":
        return [None] * max(room, 0)
    taken = {int(pod["metadata"]["annotations"][INDEX]) for pod in held} | set(done)
    free = [index for index in range(spec["completions"]) if index not in taken]
    return list(free[: max(room, 0)])


def _set(status: Manifest, type_: str, value: str, reason: str, message: str, now: datetime) -> None:
    """Put the condition, unless it has this status already."""
    known = next((item for item in status["conditions"] if item["type"] == type_), None)
    if known is not None and known["status"] == value:
        return
    at = timestamp(now)
    fresh = {"type": type_, "status": value, "reason": reason, "message": message}
    others = [item for item in status["conditions"] if item["type"] != type_]
    status["conditions"] = [*others, {**fresh, "lastProbeTime": at, "lastTransitionTime": at}]


def parse_indexes(text: str) -> list[int]:
    """[0, 1, 2, 5] of "0-2,5"."""
    result: list[int] = []
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        result += range(int(first), int(last or first) + 1)
    return result


def format_indexes(indexes: Sequence[int]) -> str:
    """Batch/v1's form: three or more in a row become a range."""
    runs: list[list[int]] = []
    for index in indexes:
        if runs and index == runs[-1][-1] + 1:
            runs[-1].append(index)
        else:
            runs.append([index])
    return ",".join(f"{run[0]}-{run[-1]}" if len(run) > 2 else ",".join(map(str, run)) for run in runs)


def _name(pod: Manifest) -> str:
    name: str = pod["metadata"]["name"]
    return name
