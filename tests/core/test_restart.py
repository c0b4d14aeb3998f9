"""Restarts: the budget, the pauses, and what is not charged."""

from __future__ import annotations

import pytest

from sftjob_operator.api.v1alpha1.policies import FailurePolicy
from sftjob_operator.effects import Create
from sftjob_operator.planning.hardware import Hardware
from sftjob_operator.policy.restart import MOST_DISRUPTIONS, wait_seconds
from worlds import Scene, exited, failed_outcome, prepared_outcome, sftjob, taken


def running(**policy) -> Scene:
    scene = Scene(sftjob(failurePolicy=policy))
    scene.start()
    return scene


def lose(scene: Scene, number: int, message: str, *pods) -> None:
    scene.run(number)
    scene.step(10)
    scene.end(number, message, pods)
    scene.step(5)


@pytest.mark.parametrize(
    ("backoff", "failures", "seconds"),
    [
        (10, 1, 10),
        (10, 2, 20),
        (10, 3, 40),
        (10, 6, 320),
        (10, 7, 600),
        (10, 1000, 600),
        (0, 5, 0),
        (3600, 1, 600),
        (30, 2, 60),
    ],
)
def test_the_pause_doubles_up_to_ten_minutes(backoff, failures, seconds):
    assert wait_seconds(FailurePolicy(backoff_seconds=backoff), failures) == seconds


def test_what_is_no_longer_on_the_volume_is_prepared_again_and_the_job_goes_on():
    scene = running()
    gone = failed_outcome("Crash", "m is no longer on the volume", reason="Unprepared")
    scene.end(1, exited(70), [scene.ended_pod(1, 70, gone)])
    scene.step(5)
    assert scene.attempt(1)["reason"] == "Unprepared"
    scene.step(30)
    assert scene.says("Running") == ("False", "Preparing")
    created = [effect.manifest for effect in scene.last.effects if isinstance(effect, Create)]
    again = next(each for each in created if each["kind"] == "Job")
    assert again["metadata"]["annotations"]["sftjob.dev/try"] == "2"
    scene.end(None, None, [scene.ended_pod(None, 0, prepared_outcome(), reason="Completed")])
    scene.step(5)
    assert scene.attempt(2)["state"] == "Pending"
    assert scene.status["restarts"] == 1


def test_the_pause_counts_from_the_end_of_the_attempt_and_is_said():
    scene = running()
    scene.end(
        1, exited(70), [scene.ended_pod(1, 70, failed_outcome("Crash", "boom", last_verified_step=110))]
    )
    last = scene.step(4)  # ended at 12:00:05
    assert last.requeue_after == 6
    assert scene.says("Running") == ("False", "Restarting")
    assert scene.condition("Running")["message"] == (
        "attempt 1 failed (Crash): boom; attempt 2 starts at 2026-01-01T12:00:15Z from the checkpoint of step 110"
    )
    assert scene.status["phase"] == "Restarting"
    assert scene.step(5).requeue_after == 1
    assert not scene.last.effects
    assert scene.step(1).effects


def test_an_operator_that_was_down_restarts_at_once():
    scene = running()
    scene.end(1, exited(70), [scene.ended_pod(1, 70)])
    scene.step(3600)
    assert [job["metadata"]["name"] for job in scene.jobs()] == ["bot-1", "bot-2"]


def test_no_pause_is_asked_for_means_none():
    scene = running(backoffSeconds=0)
    scene.end(1, exited(70), [scene.ended_pod(1, 70)])
    scene.step(1)
    assert len(scene.jobs()) == 2
    assert scene.status["restarts"] == 1
    assert [record["state"] for record in scene.status["attempts"]] == ["Failed", "Pending"]


def test_the_budget_is_used_up_after_max_restarts_further_attempts():
    scene = running(maxRestarts=2, backoffSeconds=0)
    for number in (1, 2, 3):
        assert scene.condition("Failed")["status"] == "False"
        lose(
            scene, number, exited(70), scene.ended_pod(number, 70, failed_outcome("Crash", f"boom {number}"))
        )
    assert scene.says("Failed") == ("True", "Crash")
    assert scene.condition("Failed")["message"] == (
        "spec.failurePolicy.maxRestarts (2) is used up; the last attempt, 3: boom 3"
    )
    assert scene.status["restarts"] == 2
    assert scene.status["completionTime"]
    assert scene.says("Complete") == ("False", "Failed")
    assert scene.says("Running") == ("False", "Failed")


def test_no_restarts_means_none():
    scene = running(maxRestarts=0)
    scene.end(1, exited(70), [scene.ended_pod(1, 70)])
    scene.step(5)
    assert scene.says("Failed") == ("True", "Crash")


@pytest.mark.parametrize(("code", "cls"), [(71, "UserError"), (72, "VolumeFull")])
def test_what_would_fail_again_is_not_tried_again(code, cls):
    scene = running(maxRestarts=100)
    scene.end(1, exited(code), [scene.ended_pod(1, code, failed_outcome(cls, "the fix is X"))])
    scene.step(5)
    assert scene.says("Failed") == ("True", cls)
    assert scene.condition("Failed")["message"] == "the fix is X"
    assert len(scene.status["attempts"]) == 1


def test_failed_is_the_end_once_the_job_has_started():
    scene = running(maxRestarts=0)
    scene.end(1, exited(70), [scene.ended_pod(1, 70)])
    scene.step(5)
    scene.manifest["spec"]["failurePolicy"]["maxRestarts"] = 5
    last = scene.step(600)
    assert (last.effects, last.requeue_after) == ((), None)
    assert scene.says("Failed") == ("True", "Crash")


@pytest.mark.parametrize(
    ("message", "reason"),
    [(taken(), "Disrupted"), (exited(74), "Interrupted")],
    ids=["eviction", "kubectl delete pod"],
)
def test_what_the_job_is_not_to_blame_for_is_not_charged(message, reason):
    scene = running(maxRestarts=0)
    lose(scene, 1, message)
    assert scene.says("Running") == ("False", "Restarting")
    assert (scene.attempt(1)["reason"], scene.attempt(1)["charged"]) == (reason, False)
    assert scene.status["restarts"] == 0
    scene.step(10)
    assert scene.attempt(2)["state"] == "Pending"


@pytest.mark.parametrize(
    ("taken_before", "failed"), [(MOST_DISRUPTIONS - 1, "False"), (MOST_DISRUPTIONS, "True")]
)
def test_a_cluster_that_takes_every_attempt_is_given_up_in_the_end(taken_before, failed):
    scene = running(maxRestarts=0)
    scene.manifest["status"]["disruptions"] = taken_before
    scene.end(1, taken())
    scene.step(5)
    assert scene.condition("Failed")["status"] == failed
    if failed == "True":
        assert "the cluster has taken 100 attempts" in scene.condition("Failed")["message"]


def miss(scene: Scene, number: int, *others) -> None:
    """One pod runs, the other never comes, and the first gives up."""
    scene.starting(number, [scene.pod(number, 0, phase="Running"), *others])
    scene.job(number)["status"]["ready"] = 1
    scene.step(900)
    told = failed_outcome("PeerLost", "1 of 2 ranks did not come within 900 s")
    scene.end(number, exited(73), [scene.ended_pod(number, 73, told), *others])
    scene.step()


def test_a_gang_that_has_no_room_waits_for_it_charged_to_nobody_and_in_growing_pauses():
    scene = Scene(sftjob(failurePolicy={"maxRestarts": 0}))
    scene.prepare()
    scene.step()
    pauses = []
    for number in range(1, 9):
        miss(scene, number)
        record = scene.attempt(number)
        assert (record["reason"], record["charged"]) == ("Incomplete", False)
        assert record["message"] == "not all of its pods came to run: 1 of 2 ranks did not come within 900 s"
        pauses.append(scene.last.requeue_after)
        scene.step(scene.last.requeue_after)
    assert pauses == [10, 20, 40, 80, 160, 320, 600, 600]
    assert (scene.status["restarts"], scene.status["disruptions"]) == (0, 0), "for as long as it takes"


def test_a_pod_that_is_stopped_before_it_ran_does_not_hide_that_the_gang_was_incomplete():
    scene = Scene(sftjob())
    scene.prepare()
    scene.step()
    pulling = {"phase": "Failed", "metadata": {"deletionTimestamp": "2026-01-01T12:15:01Z"}}
    miss(scene, 1, scene.pod(1, 1, **pulling))
    assert scene.attempt(1)["reason"] == "Incomplete"


def test_a_peer_that_is_lost_after_all_have_run_is_charged():
    scene = running()
    lose(scene, 1, exited(73), scene.ended_pod(1, 73, failed_outcome("PeerLost")))
    assert (scene.attempt(1)["reason"], scene.attempt(1)["charged"]) == ("PeerLost", True)


def test_the_three_newest_jobs_stay_for_their_logs():
    scene = running(maxRestarts=10, backoffSeconds=0)
    for number in range(1, 6):
        lose(scene, number, exited(70))
    assert sorted(job["metadata"]["name"] for job in scene.jobs()) == ["bot-4", "bot-5", "bot-6"]
    maps = [ref.name for ref in scene.objects if ref.kind == "ConfigMap" and "prepare" not in ref.name]
    assert sorted(maps) == ["bot-4", "bot-5", "bot-6"]


def test_a_restart_trains_exactly_as_before_although_the_hardware_now_reads_otherwise():
    scene = Scene(sftjob(workers={"gpusPerNode": 8}), Hardware(gpu_memory_bytes=80 * 2**30))
    scene.start()
    plan = scene.status["plan"]
    scene.hardware = Hardware(gpu_memory_bytes=4 * 2**30)
    lose(scene, 1, exited(70))
    scene.step(10)
    assert scene.attempt(2)["state"] == "Pending"
    assert scene.status["plan"] == plan


def test_a_spec_that_has_become_impossible_waits_for_its_repair_after_a_failure():
    scene = running(backoffSeconds=0)
    scene.manifest["spec"]["workers"] = {"nodes": 3, "gpusPerNode": 0}
    scene.step(5)
    assert scene.says("Accepted") == ("False", "BatchNotDivisible")
    assert scene.says("Running") == ("True", "Starting"), "what runs, runs on"
    lose(scene, 1, exited(70))
    assert scene.says("Running") == ("False", "NotAccepted")
    assert len(scene.jobs()) == 1
    scene.manifest["spec"]["workers"] = {"nodes": 2, "gpusPerNode": 0}
    scene.step(5)
    assert len(scene.jobs()) == 2
