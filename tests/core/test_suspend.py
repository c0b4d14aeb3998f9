"""Suspension by the user at every moment of a job's life, and by a queue."""

from __future__ import annotations

import pytest

from sftjob_operator.api import names
from sftjob_operator.effects import Patch
from worlds import Scene, exited, failed_outcome, prepared_outcome, progress, sftjob


def suspend(scene: Scene, wanted: bool = True) -> None:
    scene.manifest["spec"]["suspend"] = wanted


def test_a_job_that_is_made_suspended_makes_nothing():
    scene = Scene(sftjob(suspend=True))
    last = scene.step()
    assert last.effects == ()
    assert scene.says("Suspended") == ("True", "SuspendedByUser")
    assert scene.says("Running") == ("False", "Suspended")
    assert scene.status["phase"] == "Suspended"
    assert not scene.needs.prerequisites
    suspend(scene, False)
    scene.step()
    assert scene.says("Suspended") == ("False", "NotSuspended")
    assert scene.says("Running") == ("False", "Preparing")


def test_a_running_job_saves_stops_and_goes_on_in_the_same_job():
    scene = Scene()
    scene.start()
    suspend(scene)
    last = scene.step(5)
    assert len(last.effects) == 1
    assert isinstance(last.effects[0], Patch)
    assert scene.job(1)["spec"]["suspend"] is True
    assert scene.says("Suspended") == ("False", "Suspending")
    assert scene.says("Running") == ("False", "Suspending")
    scene.suspend(1, active=0)
    scene.job(1)["status"]["terminating"] = 2
    last = scene.step(5)
    assert scene.says("Suspended") == ("False", "Suspending"), "the pods still save"
    assert last.requeue_after == 5
    scene.suspend(1)
    last = scene.step(5)
    assert scene.says("Suspended") == ("True", "SuspendedByUser")
    assert (last.effects, last.requeue_after) == ((), None)
    assert scene.attempt(1)["state"] == "Suspended"
    suspend(scene, False)
    scene.step(60)
    assert scene.job(1)["spec"]["suspend"] is False
    assert names.ANNOTATION_SUSPENDED_BY not in scene.job(1)["metadata"].get("annotations", {})
    assert scene.says("Running") == ("False", "Resuming")
    scene.run(1)
    scene.progress = progress()
    scene.step(10)
    assert scene.says("Running") == ("True", "TrainingSteps")
    assert (scene.attempt(1)["state"], scene.attempt(1)["runs"]) == ("Running", 2)
    assert len(scene.jobs()) == 1


@pytest.mark.parametrize("number", [None, 1], ids=["prepare", "attempt"])
def test_a_pod_on_a_dead_node_does_not_hold_up_a_suspension_and_is_gone_on_without(number):
    scene = Scene()
    scene.step() if number is None else scene.start()
    scene.run(number)
    suspend(scene)
    scene.step(5)
    scene.suspend(number)
    scene.job(number)["status"]["terminating"] = 1
    stuck = {"deletionTimestamp": "2026-01-01T12:02:10Z"}
    scene.pods = [scene.pod(number, 0, phase="Running", metadata=stuck)]
    scene.step(60)
    assert scene.says("Suspended") == ("False", "Suspending"), "it may still be saving"
    last = scene.step(120)
    assert scene.says("Suspended") == ("True", "SuspendedByUser")
    name = scene.pods[0]["metadata"]["name"]
    assert f"the node does not answer: pod {name} on node node-0" in scene.condition("Suspended")["message"]
    assert (last.effects, last.requeue_after) == ((), None)
    suspend(scene, False)
    scene.step(600)
    assert scene.says("Running") == ("False", "Resuming")
    scene.job(number)["status"] = {"terminating": 1}
    scene.step(10)
    assert scene.says("Running") == ("False", "Restarting")
    assert "NodeLost" in scene.condition("Running")["message"]
    scene.step(10)
    assert len(scene.jobs("prepare" if number is None else "train")) == 1


def test_the_end_of_a_suspension_is_no_event_and_its_beginning_is_one_with_words():
    scene = Scene(sftjob(suspend=True))
    scene.step()
    suspend(scene, False)
    scene.step(5)
    told = [(event.reason, event.message) for event in scene.events]
    assert told == [
        ("Valid", "the spec is consistent"),
        ("SuspendedByUser", "spec.suspend is true; set it to false to go on"),
    ]


def test_a_resumed_gang_is_given_time_to_start_again():
    scene = Scene()
    scene.start()
    suspend(scene)
    scene.step(5)
    scene.suspend(1)
    scene.step(5)
    suspend(scene, False)
    scene.step(3600)
    scene.starting(1, [scene.pod(1, phase="Pending")])
    last = scene.step(1)
    assert scene.says("Running") == ("False", "ContainerCreating")
    assert last.requeue_after == 4


def test_preparation_is_suspended_like_everything_else():
    scene = Scene()
    scene.step()
    scene.run(None)
    suspend(scene)
    scene.step(5)
    assert scene.job(None)["spec"]["suspend"] is True
    scene.suspend(None)
    scene.step(5)
    assert scene.says("Suspended") == ("True", "SuspendedByUser")
    suspend(scene, False)
    scene.step(5)
    assert scene.job(None)["spec"]["suspend"] is False
    scene.end(None, None, [scene.ended_pod(None, 0, prepared_outcome(), reason="Completed")])
    scene.step(5)
    assert scene.attempt(1)["state"] == "Pending"


def test_suspended_while_waiting_for_a_restart_no_attempt_is_made():
    scene = Scene()
    scene.start()
    scene.end(1, exited(70), [scene.ended_pod(1, 70)])
    scene.step(5)
    suspend(scene)
    scene.step(60)
    assert scene.says("Suspended") == ("True", "SuspendedByUser")
    assert len(scene.jobs()) == 1
    suspend(scene, False)
    scene.step(5)
    assert len(scene.jobs()) == 2


def test_a_gang_that_the_job_controller_calls_failed_because_it_was_suspended_is_not_charged():
    """Pods that leave on the suspension's SIGTERM can match the podFailurePolicy before they are gone."""
    scene = Scene(sftjob(failurePolicy={"maxRestarts": 0}))
    scene.start()
    suspend(scene)
    scene.step(5)
    scene.end(1, exited(74), [scene.ended_pod(1, 74, failed_outcome("Interrupted", "saved step 120"))])
    scene.step(5)
    assert scene.says("Suspended") == ("True", "SuspendedByUser")
    assert scene.says("Failed") == ("False", "InProgress")
    assert (scene.attempt(1)["reason"], scene.attempt(1)["charged"]) == ("Interrupted", False)
    suspend(scene, False)
    scene.step(60)
    assert scene.attempt(2)["state"] == "Pending"


def test_a_user_error_found_while_suspending_is_still_one():
    scene = Scene()
    scene.start()
    suspend(scene)
    scene.step(5)
    scene.end(1, exited(71), [scene.ended_pod(1, 71, failed_outcome("UserError", "bad"))])
    scene.step(5)
    assert scene.says("Failed") == ("True", "UserError")


def test_a_queue_holds_the_job_and_is_never_overruled():
    queue = {"kueue.x-k8s.io/queue-name": "team-a", "other": "label"}
    scene = Scene(sftjob(labels=queue))
    scene.step()
    assert scene.job(None)["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "team-a"
    assert "other" not in scene.job(None)["metadata"]["labels"]
    scene.end(None, None, [scene.ended_pod(None, 0, prepared_outcome(), reason="Completed")])
    scene.step(5)
    scene.job(1)["spec"]["suspend"] = True  # Kueue's webhook
    last = scene.step(5)
    assert last.effects == ()
    assert scene.says("Running") == ("False", "Queued")
    assert "queue team-a" in scene.condition("Running")["message"]
    assert scene.status["phase"] == "Queued"
    assert scene.attempt(1)["runs"] == 0
    scene.job(1)["spec"]["suspend"] = False
    scene.run(1)
    scene.step(5)
    assert (scene.attempt(1)["state"], scene.attempt(1)["runs"]) == ("Running", 1)
    scene.job(1)["spec"]["suspend"] = True
    scene.suspend(1)
    scene.step(5)
    scene.job(1)["spec"]["suspend"] = False
    scene.run(1)
    scene.step(5)
    assert scene.attempt(1)["runs"] == 2


def test_the_user_may_suspend_what_a_queue_holds_and_the_queue_keeps_it():
    scene = Scene()
    scene.prepare()
    scene.step(5)
    scene.job(1)["spec"]["suspend"] = True
    suspend(scene)
    last = scene.step(5)
    assert last.effects == ()
    assert scene.says("Suspended") == ("True", "SuspendedByUser")
    suspend(scene, False)
    assert scene.step(5).effects == ()
    assert scene.says("Running") == ("False", "Queued")
