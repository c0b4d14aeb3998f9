"""Time limits of a whole job, what comes after its end, and jobs that are not ours to touch."""

from __future__ import annotations

import pytest

from sftjob_operator.api.objects import Ref
from sftjob_operator.effects import Delete
from sftjob_operator.world import Refusal
from worlds import Scene, exited, progress, sftjob, trained_outcome

HOUR = 3600
ITSELF = Ref("sftjob.dev/v1alpha1", "SFTJob", "team", "bot")


def complete(scene: Scene) -> None:
    scene.end(1, None, [scene.ended_pod(1, 0, trained_outcome(), reason="Completed")])
    scene.step(5)


def held_by_a_queue(seconds: float) -> Scene:
    scene = Scene(sftjob(activeDeadlineSeconds=HOUR))
    scene.prepare()
    scene.step()
    scene.job(1)["spec"]["suspend"] = True
    scene.suspend(1)
    scene.step(seconds)
    return scene


def test_a_job_that_is_active_too_long_stops_and_fails():
    scene = Scene(sftjob(activeDeadlineSeconds=HOUR))
    scene.start()
    scene.progress = progress()
    assert scene.step(HOUR - 15).effects == ()
    assert scene.last.requeue_after == 10, "not the poll: 5 s of the hour went by in start()"
    job = scene.job(1)
    last = scene.step(10)
    assert last.effects == (Delete(Ref("batch/v1", "Job", "team", "bot-1"), job["metadata"]["uid"]),)
    assert scene.says("Failed") == ("True", "DeadlineExceeded")
    assert scene.condition("Failed")["message"].startswith(
        "spec.activeDeadlineSeconds (3600) have passed since 2026-01-01T12:00:00Z"
    )
    record = scene.attempt(1)
    assert (record["state"], record["reason"], record["charged"]) == ("Failed", "DeadlineExceeded", False)
    assert scene.status["completionTime"] == "2026-01-01T13:00:00Z"
    assert scene.step(HOUR).effects == (), "no further attempt"


def test_without_the_right_to_stop_its_pods_there_is_no_verdict_and_it_tries_again():
    scene = Scene(sftjob(activeDeadlineSeconds=HOUR))
    scene.start()
    scene.progress = progress()
    scene.refusal = Refusal(Ref("batch/v1", "Job", "team", "bot-1"), 403, "Forbidden", "no deletions today")
    last = scene.step(2 * HOUR)
    assert (last.effects, last.requeue_after) == ((), 60)
    assert scene.says("Failed")[0] == "False"
    assert scene.says("Running") == ("False", "Forbidden")
    scene.refusal = None
    assert [type(effect) for effect in scene.step(60).effects] == [Delete]
    assert scene.says("Failed") == ("True", "DeadlineExceeded")


def test_a_longer_deadline_is_obeyed_at_once():
    scene = Scene(sftjob(activeDeadlineSeconds=HOUR))
    scene.start()
    scene.manifest["spec"]["activeDeadlineSeconds"] = 2 * HOUR
    scene.step(HOUR)
    assert scene.says("Failed") == ("False", "InProgress")


def test_the_pause_before_a_restart_is_active_time():
    scene = Scene(sftjob(activeDeadlineSeconds=HOUR, failurePolicy={"backoffSeconds": 600}))
    scene.start()
    scene.step(HOUR - 105)
    scene.end(1, exited(70), [scene.ended_pod(1, 70)])
    assert scene.step(5).requeue_after == 95
    assert scene.says("Running") == ("False", "Restarting")
    assert scene.step(95).effects == ()
    assert scene.says("Failed") == ("True", "DeadlineExceeded")


def test_what_has_completed_meanwhile_is_complete():
    scene = Scene(sftjob(activeDeadlineSeconds=HOUR))
    scene.start()
    scene.now = scene.now.replace(hour=14)
    complete(scene)
    assert scene.says("Complete") == ("True", "Trained")


def test_a_result_that_stands_is_waited_for_while_its_pod_writes_the_report():
    scene = Scene(sftjob(activeDeadlineSeconds=HOUR))
    scene.start()
    scene.progress = progress(step=480, state="Done")
    assert scene.step(HOUR).effects == ()
    assert scene.says("Failed") == ("False", "InProgress")
    complete(scene)
    assert scene.says("Complete") == ("True", "Trained")


def test_a_pod_that_never_ends_is_not_waited_for_for_ever():
    scene = Scene(sftjob(activeDeadlineSeconds=HOUR))
    scene.start()
    scene.progress = progress(step=480, state="Done")
    scene.step(HOUR + 600)
    assert scene.says("Failed") == ("True", "DeadlineExceeded")


def test_a_suspension_stops_the_clock_and_sets_it_back():
    scene = Scene(sftjob(activeDeadlineSeconds=HOUR))
    scene.start()
    scene.manifest["spec"]["suspend"] = True
    scene.step(1800)
    scene.suspend(1)
    assert scene.step(9 * HOUR).requeue_after is None
    scene.manifest["spec"]["suspend"] = False
    scene.step(5)
    scene.run(1)
    scene.step(HOUR - 60)
    assert scene.says("Failed") == ("False", "InProgress")
    scene.step(60)
    assert scene.says("Failed") == ("True", "DeadlineExceeded")


def test_waiting_in_a_queue_for_the_start_is_not_active_time():
    scene = held_by_a_queue(30 * HOUR)
    assert scene.says("Running") == ("False", "Queued")
    scene.job(1)["spec"]["suspend"] = False
    scene.run(1)
    scene.step(HOUR - 1)
    assert scene.says("Failed") == ("False", "InProgress")
    scene.step(1)
    assert scene.says("Failed") == ("True", "DeadlineExceeded")


def test_nor_is_it_once_the_attempt_that_waited_has_failed():
    scene = held_by_a_queue(30 * HOUR)
    assert "startTime" not in scene.attempt(1)
    scene.job(1)["spec"]["suspend"] = False
    scene.run(1)
    scene.step(5)
    started = scene.attempt(1)["startTime"]
    scene.end(1, exited(70), [scene.ended_pod(1, 70)])
    scene.step(5)
    scene.step(595)
    assert scene.attempt(1)["startTime"] == started
    scene.run(2)
    scene.step(HOUR - 700)
    assert scene.says("Failed") == ("False", "InProgress")
    scene.step(200)
    assert scene.says("Failed") == ("True", "DeadlineExceeded")


@pytest.mark.parametrize("how", ["complete", "failed"])
def test_a_finished_job_goes_when_its_time_is_over(how: str):
    scene = Scene(sftjob(ttlSecondsAfterFinished=HOUR, failurePolicy={"maxRestarts": 0}))
    scene.start()
    if how == "complete":
        complete(scene)
    else:
        scene.end(1, exited(70), [scene.ended_pod(1, 70)])
        scene.step(5)
    assert scene.step(600).effects == ()
    assert scene.last.requeue_after == pytest.approx(HOUR - 600, abs=5)
    assert scene.step(HOUR - 600).effects == (Delete(ITSELF, "uid-of-the-job"),)


def test_without_a_ttl_it_stays_and_one_that_is_added_counts_from_the_end():
    scene = Scene()
    scene.start()
    complete(scene)
    assert (scene.step(99 * HOUR).effects, scene.last.requeue_after) == ((), None)
    scene.manifest["spec"]["ttlSecondsAfterFinished"] = 0
    assert scene.step(0).effects == (Delete(ITSELF, "uid-of-the-job"),)


def test_an_operator_that_may_not_delete_tries_again_later():
    scene = Scene(sftjob(ttlSecondsAfterFinished=1))
    scene.start()
    complete(scene)
    scene.refusal = Refusal(ITSELF, 403, "Forbidden", "no")
    last = scene.step(5)
    assert (last.effects, last.requeue_after) == ((), 600)
    assert scene.says("Complete") == ("True", "Trained")


@pytest.mark.parametrize(
    ("metadata", "spec"),
    [({}, {"managedBy": "kueue.x-k8s.io/multikueue"}), ({"annotations": {"sftjob.dev/paused": "true"}}, {})],
    ids=["managed by another", "paused"],
)
def test_hands_off(metadata: dict, spec: dict):
    manifest = sftjob(**spec)
    manifest["metadata"] |= metadata
    scene = Scene(manifest)
    last = scene.step(5)
    assert (last.effects, last.status, last.events, last.requeue_after) == ((), None, (), None)
    assert not scene.needs.prerequisites


def test_a_paused_job_runs_on_unwatched_and_is_taken_up_again():
    scene = Scene()
    scene.start()
    scene.manifest["metadata"]["annotations"] = {"sftjob.dev/paused": "true"}
    scene.end(1, exited(70), [scene.ended_pod(1, 70)])
    assert scene.step(600).effects == ()
    assert scene.attempt(1)["state"] == "Running"
    del scene.manifest["metadata"]["annotations"]
    scene.step(5)
    assert scene.attempt(1)["state"] == "Failed"


def test_its_own_name_as_manager_is_as_good_as_none():
    scene = Scene(sftjob(managedBy="sftjob.dev/operator"))
    scene.step()
    assert scene.jobs("prepare")
