"""The Job controller as a function: jobs and pods in, status and pods to make or end out."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from sftjob_operator.cluster.local import admission
from sftjob_operator.cluster.local.jobpods import INDEX, TRACKING
from sftjob_operator.cluster.local.jobs import format_indexes, parse_indexes, sync

NOW = datetime(2030, 1, 1, tzinfo=UTC)
POD_SPEC = {"restartPolicy": "Never", "containers": [{"name": "trainer"}]}


def job(status: dict[str, Any] | None = None, **spec: Any) -> dict[str, Any]:
    whole = {
        "completionMode": "Indexed",
        "completions": 2,
        "parallelism": 2,
        "backoffLimit": 0,
        "podFailurePolicy": {"rules": [rule("In", 71), rule("NotIn", 0)]},
        "template": {"spec": POD_SPEC},
        **spec,
    }
    metadata = {"name": "j", "namespace": "n", "uid": "u"}
    manifest = {"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": whole}
    return {**admission.admit(manifest, None), **({"status": status} if status else {})}


def rule(operator: str, code: int, action: str = "FailJob") -> dict[str, Any]:
    return {"action": action, "onExitCodes": {"operator": operator, "values": [code]}}


def pod(
    index: int, phase: str, code: int | None = None, *, going: bool = False, counted: bool = False
) -> dict[str, Any]:
    metadata: dict[str, Any] = {
        "name": f"j-{index}-x",
        "namespace": "n",
        "annotations": {INDEX: str(index)},
        "finalizers": [] if counted else [TRACKING],
    }
    if going:
        metadata["deletionTimestamp"] = "2030-01-01T00:00:00Z"
    status: dict[str, Any] = {"phase": phase}
    if code is not None:
        status["containerStatuses"] = [{"name": "trainer", "state": {"terminated": {"exitCode": code}}}]
    return {"metadata": metadata, "status": status}


def reasons(status: dict[str, Any]) -> dict[str, str]:
    return {item["type"]: item["reason"] for item in status["conditions"] if item["status"] == "True"}


def test_a_new_job_makes_a_pod_for_every_index():
    result = sync(job(), [], NOW)
    assert result.create == [0, 1]
    assert result.status["startTime"] == "2030-01-01T00:00:00Z"


def test_parallelism_limits_the_pods():
    result = sync(job(completions=5, parallelism=2), [pod(0, "Succeeded", 0), pod(1, "Running")], NOW)
    assert result.create == [2]


def test_a_success_is_counted_once_and_its_pod_released():
    first = sync(job(), [pod(0, "Succeeded", 0), pod(1, "Running")], NOW)
    assert (first.status["completedIndexes"], first.release) == ("0", ["j-0-x"])
    again = sync(job(first.status), [pod(0, "Succeeded", 0, counted=True), pod(1, "Running")], NOW)
    assert (again.status["succeeded"], again.release, again.create) == (1, [], [])


def test_the_last_success_completes_the_job():
    result = sync(job(), [pod(0, "Succeeded", 0), pod(1, "Succeeded", 0)], NOW)
    assert reasons(result.status) == {
        "SuccessCriteriaMet": "CompletionsReached",
        "Complete": "CompletionsReached",
    }


def test_a_failure_is_told_at_once_and_failed_when_the_siblings_are_down():
    first = sync(job(), [pod(0, "Running"), pod(1, "Failed", 71)], NOW)
    assert reasons(first.status) == {"FailureTarget": "PodFailurePolicy"}
    assert first.delete == ["j-0-x"]
    waiting = sync(
        job(first.status), [pod(0, "Running", going=True), pod(1, "Failed", 71, counted=True)], NOW
    )
    assert reasons(waiting.status) == {"FailureTarget": "PodFailurePolicy"}
    last = sync(
        job(first.status), [pod(0, "Failed", 74, going=True), pod(1, "Failed", 71, counted=True)], NOW
    )
    assert reasons(last.status) == {"FailureTarget": "PodFailurePolicy", "Failed": "PodFailurePolicy"}
    message = "Container trainer for pod n/j-1-x failed with exit code 71 matching FailJob rule at index 0"
    assert {item["message"] for item in last.status["conditions"]} == {message}


def test_an_ignored_exit_code_is_replaced_and_not_counted():
    ignoring = {"rules": [rule("In", 74, "Ignore"), rule("NotIn", 0)]}
    result = sync(job(podFailurePolicy=ignoring), [pod(0, "Running"), pod(1, "Failed", 74)], NOW)
    assert (result.status["failed"], result.create, result.status["conditions"]) == (0, [1], [])


def test_a_replacement_waits_for_the_end_of_its_predecessor():
    assert sync(job(), [pod(0, "Running"), pod(1, "Running", going=True)], NOW).create == []


def test_suspension_ends_the_pods_without_counting_them():
    result = sync(job(suspend=True), [pod(0, "Running"), pod(1, "Running")], NOW)
    assert result.delete == result.release == ["j-0-x", "j-1-x"]
    assert reasons(result.status) == {"Suspended": "JobSuspended"}
    assert (result.status["active"], result.status["terminating"], result.create) == (0, 2, [])


def test_a_fail_rule_takes_a_pod_that_a_suspension_ended():
    """As measured on Kubernetes 1.34: whoever suspends a Job must expect it to fail with the exit code of its pods."""
    result = sync(job(suspend=True), [pod(0, "Failed", 74, going=True, counted=True)], NOW)
    assert reasons(result.status)["Failed"] == "PodFailurePolicy"
    assert result.status["failed"] == 0


def test_resuming_makes_new_pods_and_restarts_the_clock():
    before = sync(job(suspend=True), [], NOW).status
    later = NOW + timedelta(hours=1)
    result = sync(job(before), [], later)
    assert reasons(result.status) == {}
    assert (result.create, result.status["startTime"]) == ([0, 1], "2030-01-01T01:00:00Z")


def test_a_finished_job_makes_nothing_and_ends_what_is_left():
    done = sync(job(), [pod(0, "Succeeded", 0), pod(1, "Succeeded", 0)], NOW).status
    result = sync(job(done), [pod(0, "Running")], NOW)
    assert (result.create, result.delete, result.status) == ([], ["j-0-x"], done)


def test_the_deadline_counts_from_the_start():
    started = {"startTime": "2029-12-31T23:59:00Z", "conditions": []}
    result = sync(job(started, activeDeadlineSeconds=60), [pod(0, "Running")], NOW)
    assert reasons(result.status) == {"FailureTarget": "DeadlineExceeded"}


@pytest.mark.parametrize(
    ("indexes", "text"),
    [([], ""), ([0], "0"), ([0, 1], "0,1"), ([0, 1, 2, 5], "0-2,5"), ([1, 3, 4, 6, 7, 8], "1,3,4,6-8")],
)
def test_completed_indexes_are_written_as_batch_does(indexes: list[int], text: str):
    assert format_indexes(indexes) == text
    assert parse_indexes(text) == indexes
