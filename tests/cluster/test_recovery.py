"""What happens to a running job when somebody or something interferes: on a real cluster, with a tiny model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import tiny
from rooms import Room, until

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]
STEPS = 120


def long_job(room: Room, name: str, steps: int = STEPS) -> None:
    """A job that trains for half a minute or so and checkpoints every 20 steps."""
    tiny.model(room.workspace / "models" / "tiny", hidden=256, layers=4)
    tiny.chats(room.workspace / "datasets" / "chats.jsonl", count=40)
    spec = tiny.spec(maxSteps=steps, globalBatchSize=4)
    spec["data"]["maxLength"] = 512
    spec["checkpoint"] = {"periodSteps": 20, "retain": {"last": 2}}
    spec["failurePolicy"] = {"backoffSeconds": 1}
    room.apply(name, spec)


def reached(room: Room, name: str, step: int) -> None:
    """Read off the volume: the status tells of steps every half a minute, and the job would be over."""

    def look() -> bool:
        return metrics(room, name).exists() and max(losses(room, name), default=0) >= step

    until(f"step {step}", look, 300, every=0.2, diagnose=lambda: room.diagnose(name))


def metrics(room: Room, name: str) -> Path:
    return room.workspace / "jobs" / name / "report" / "metrics.jsonl"


def losses(room: Room, name: str) -> dict[int, float]:
    whole, _, _ = metrics(room, name).read_text().rpartition("\n")  # the last line may just be written
    lines = whole.splitlines()
    return {row["step"]: row["loss"] for row in map(json.loads, lines) if row.get("loss") is not None}


def test_a_deleted_pod_costs_one_attempt_and_the_next_goes_on_from_the_checkpoint(room: Room):
    long_job(room, "wounded")
    reached(room, "wounded", 50)
    before = losses(room, "wounded")
    victim = room.pods("sftjob.dev/role=train,batch.kubernetes.io/job-completion-index=1")[0]["metadata"][
        "name"
    ]
    room.kube.kubectl("delete", "pod", victim, "-n", room.namespace, "--wait=false", check=True)
    until(
        "attempt 2",
        lambda: len(room.job("wounded").get("status", {}).get("attempts", [])) == 2,
        180,
        diagnose=lambda: room.diagnose("wounded"),
    )
    room.wait("wounded", "Complete", seconds=400)
    first, second = room.job("wounded")["status"]["attempts"]
    assert first["state"] == "Failed"
    assert first["charged"] is False, "a pod that was taken is nobody's fault"
    assert second["resumedFromStep"] >= 40
    after = losses(room, "wounded")
    assert sorted(after) == list(range(1, STEPS + 1)), "every step once"
    assert all(after[step] == before[step] for step in before if step <= second["resumedFromStep"])


def test_suspension_saves_and_resuming_goes_on_from_the_last_step(room: Room):
    long_job(room, "paused")
    reached(room, "paused", 25)
    room.suspend("paused", True)
    room.wait("paused", "Suspended", seconds=120)
    assert room.condition("paused", "Running")["reason"] == "Suspended"
    until("no pod is left", lambda: not room.pods("sftjob.dev/role=train"), 60)
    stopped_at = max(losses(room, "paused"))
    room.suspend("paused", False)
    room.wait("paused", "Complete", seconds=400)
    status = room.job("paused")["status"]
    last = status["attempts"][-1]
    assert last["resumedFromStep"] == stopped_at, "the last step before the suspension was saved"
    assert status.get("restarts", 0) == 0, "a suspension is nobody's failure"
    assert sorted(losses(room, "paused")) == list(range(1, STEPS + 1)), "every step once"


def test_a_running_job_that_is_scaled_goes_on_in_the_new_size(room: Room):
    long_job(room, "scaled")
    reached(room, "scaled", 25)
    before = losses(room, "scaled")
    room.kube.kubectl("scale", "sftjob/scaled", "--replicas=1", "-n", room.namespace, check=True)
    room.wait("scaled", "Complete", seconds=400)
    status = room.job("scaled")["status"]
    first, last = status["attempts"]
    assert first["charged"] is False
    assert last["resumedFromStep"] >= 25
    assert (status["nodes"], status["plan"]["worldSize"], status.get("restarts", 0)) == (1, 1, 0)
    after = losses(room, "scaled")
    assert sorted(after) == list(range(1, STEPS + 1)), "every step once"
    assert all(after[step] == before[step] for step in before if step <= last["resumedFromStep"])


def test_other_data_under_the_same_name_never_continues_the_old_weights(room: Room):
    long_job(room, "twice", steps=4)
    room.wait("twice", "Complete", seconds=300)
    room.kube.kubectl("delete", "sftjob", "twice", "-n", room.namespace, "--timeout=60s", check=True)
    tiny.chats(room.workspace / "datasets" / "other.jsonl", count=7)
    spec = tiny.spec(maxSteps=4)
    spec["data"]["train"][0]["path"] = "datasets/other.jsonl"
    room.apply("twice", spec)
    failed = room.wait("twice", "Failed", seconds=300)
    assert failed["reason"] == "CheckpointsOfAnotherJob"
    assert "StartFresh" in failed["message"]
    assert len(room.job("twice")["status"]["attempts"]) == 1


def test_a_crash_is_retried_until_the_budget_is_spent(room: Room):
    """The pods cannot find their program: no fault of the data, so it is tried again, and then given up."""
    tiny.model(room.workspace / "models" / "tiny")
    tiny.chats(room.workspace / "datasets" / "chats.jsonl")
    spec = tiny.spec()
    spec["workers"] = {"env": [{"name": "PATH", "value": "/nowhere"}]}
    spec["failurePolicy"] = {"maxRestarts": 1, "backoffSeconds": 1}
    room.apply("doomed", spec)
    failed = room.wait("doomed", "Failed", seconds=240)
    assert failed["message"]
    status = room.job("doomed")["status"]
    assert [attempt["state"] for attempt in status["attempts"]] == ["Failed", "Failed"]
    assert status["restarts"] == 1
