"""A job's life through the eyes of the pure core: what each pass does, says and asks for."""

from __future__ import annotations

import json

import pytest

from sftjob_operator.api.status import CONDITION_TYPES, Status
from sftjob_operator.effects import Apply, Create
from sftjob_operator.step import unreadable
from worlds import Scene, exited, failed_outcome, prepared_outcome, progress, sftjob, trained_outcome


def created(scene: Scene) -> list[str]:
    return [
        f"{effect.manifest['kind']}/{effect.manifest['metadata']['name']}"
        for effect in scene.last.effects
        if isinstance(effect, Create | Apply)
    ]


def test_the_first_pass_prepares_and_shows_every_condition():
    scene = Scene()
    scene.step()
    config_map, job = created(scene)
    assert config_map.startswith("ConfigMap/bot-prepare-")
    assert job == config_map.replace("ConfigMap", "Job")
    assert [item["type"] for item in scene.status["conditions"]] == list(CONDITION_TYPES)
    assert scene.says("Accepted") == ("True", "Valid")
    assert scene.says("Prepared") == ("Unknown", "Preparing")
    assert scene.says("Running") == ("False", "Preparing")
    assert scene.says("Complete") == ("False", "InProgress")
    assert scene.status["phase"] == "Preparing"
    assert scene.status["observedGeneration"] == 1
    assert "startTime" not in scene.status


def test_a_finished_preparation_starts_the_first_attempt():
    scene = Scene()
    scene.prepare()
    scene.step(3)
    assert created(scene) == ["ConfigMap/bot-1", "Service/bot", "Job/bot-1"]
    assert scene.says("Prepared") == ("True", "DataReady")
    assert scene.condition("Prepared")["message"] == (
        "1,000 rows, 90,000 supervised tokens, 50 held out, 12 truncated"
    )
    assert scene.says("Planned") == ("True", "Fits")
    assert scene.status["startTime"] == "2026-01-01T12:00:03Z"
    assert scene.status["nodes"] == 2
    assert scene.status["data"]["cacheHash"] == "c0ffee"
    assert scene.attempt(1)["state"] == "Pending"


def test_the_plan_and_the_attempts_need_no_prepare_job_any_more():
    scene = Scene()
    scene.start()
    for ref in [ref for ref in scene.objects if "prepare" in ref.name]:
        del scene.objects[ref]
    scene.end(1, exited(70), [scene.ended_pod(1, 70)])
    scene.step(5)
    scene.step(10)
    assert "Job/bot-2" in created(scene)


def test_a_running_job_shows_its_progress():
    scene = Scene()
    scene.start()
    assert scene.says("Running") == ("True", "Starting")
    scene.progress = progress(
        step=120,
        last_verified_step=110,
        checkpoints=[
            {"name": "step-110", "step": 110, "attempt": 1, "bytes": 1 << 30, "time": "2026-01-01T12:09:00Z"}
        ],
    )
    scene.step(10)
    assert scene.condition("Running")["message"] == "attempt 1, step 120 of 480"
    assert scene.last.requeue_after == 10
    told = scene.status["progress"]
    assert told["display"] == "120/480"
    assert (told["progressPercentage"], told["eta"], told["loss"]) == (25, "1h52m", "1.8342")
    assert told["tokensPerSecond"] == 41250
    assert scene.status["lastVerifiedStep"] == 110
    assert scene.status["checkpoints"] == [
        {
            "name": "step-110",
            "step": 110,
            "attempt": 1,
            "verified": True,
            "size": "1024Mi",
            "time": "2026-01-01T12:09:00Z",
        }
    ]


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        ("Starting", "Starting"),
        ("Training", "TrainingSteps"),
        ("Evaluating", "Evaluating"),
        ("Saving", "SavingCheckpoint"),
        ("Exporting", "Exporting"),
        ("Done", "Exporting"),
    ],
)
def test_running_says_what_the_ranks_do(state, reason):
    scene = Scene()
    scene.start()
    scene.progress = progress(state=state)
    scene.step(10)
    assert scene.says("Running") == ("True", reason)


def test_progress_alone_is_written_only_now_and_then_and_a_condition_at_once():
    scene = Scene()
    scene.start()
    scene.progress = progress(step=1)
    assert scene.step(10).status is not None
    scene.progress = progress(step=2)
    assert scene.step(10).status is None
    scene.progress = progress(step=3, state="Exporting")
    assert scene.step(1).status is not None
    scene.progress = progress(step=4, state="Exporting")
    assert scene.step(35).status is not None
    assert scene.step(60).status is None, "nothing has changed"


def test_steps_evaluations_and_checkpoints_that_take_turns_are_progress_and_no_news():
    scene = Scene()
    scene.start()
    scene.progress = progress(step=1)
    scene.step(10)
    writes = 0
    for step in range(2, 14):
        scene.progress = progress(step=step, state=("Saving", "Evaluating", "Training")[step % 3])
        writes += scene.step(10).status is not None
    assert writes == 3, "two minutes, looked at every ten seconds, and never twice in half a minute"


def test_progress_of_another_attempt_is_not_believed():
    scene = Scene()
    scene.start()
    scene.progress = progress(attempt=7)
    scene.step(10)
    assert "progress" not in scene.status


@pytest.mark.parametrize(
    ("told", "shown"), [(0.412, 41), (0.0, 0), (None, None), (float("nan"), None), (-0.1, None), (7.0, None)]
)
def test_mfu_is_a_percentage_where_it_can_be_one(told: float | None, shown: int | None):
    scene = Scene()
    scene.start()
    scene.progress = progress(step=3, mfu=told)
    scene.step(10)
    assert scene.status["progress"].get("mfuPercent") == shown


def test_no_time_remains_for_a_job_that_stands():
    scene = Scene()
    scene.start()
    scene.progress = progress(step=3, estimated_remaining_seconds=600, tokens_per_second=812.0)
    scene.step(10)
    assert scene.status["progress"]["eta"] == "10m"
    scene.end(1, exited(70), [scene.ended_pod(1, 70)])
    scene.step(5)
    told = scene.status["progress"]
    assert (told["display"], told["tokensPerSecond"]) == ("3/480", 812)
    assert "eta" not in told
    assert "estimatedRemainingSeconds" not in told


def test_a_new_attempt_that_still_loads_keeps_the_progress_of_the_old_one():
    scene = Scene()
    scene.start()
    scene.progress = progress(step=120)
    scene.step(10)
    scene.end(1, exited(70), [scene.ended_pod(1, 70)])
    scene.step(5)
    scene.step(10)
    scene.run(2)
    scene.progress = progress(attempt=2, step=0, total_steps=0, state="Starting")
    scene.step(10)
    assert scene.status["progress"]["display"] == "120/480"
    assert scene.condition("Running")["message"] == "attempt 2, the ranks load the model"
    scene.progress = progress(attempt=2, step=111, resumed_from_step=110)
    scene.step(40)
    assert scene.attempt(2)["resumedFromStep"] == 110
    assert scene.status["progress"]["display"] == "111/480"


def test_complete_needs_the_result_of_index_zero():
    scene = Scene()
    scene.start()
    scene.progress = progress()
    scene.step(10)
    scene.end(
        1,
        None,
        [
            scene.ended_pod(1, 0, trained_outcome(), 0, "Completed"),
            scene.ended_pod(1, 0, "", 1, "Completed"),
        ],
    )
    scene.step(5)
    assert scene.says("Complete") == ("True", "Trained")
    assert scene.says("Running") == ("False", "Finished")
    assert scene.says("Failed") == ("False", "Trained")
    assert scene.status["phase"] == "Succeeded"
    assert scene.status["result"] == {"export": "jobs/bot/export", "steps": 480, "loss": "0.4900"}
    assert scene.status["completionTime"] == "2026-01-01T12:00:15Z"
    assert scene.status["progress"]["display"] == "480/480"
    assert scene.attempt(1)["state"] == "Succeeded"


def test_complete_says_that_training_stopped_early_and_which_state_was_exported():
    scene = Scene()
    scene.start()
    train = {"steps": 120, "planned_steps": 480, "exported_step": 90, "eval_loss": 1.25}
    train |= {"export_directory": "jobs/bot/export", "export_bytes": 1}
    scene.end(1, None, [scene.ended_pod(1, 0, trained_outcome(train=train), 0, "Completed")])
    scene.step(5)
    assert scene.says("Complete") == ("True", "StoppedEarly")
    complete = next(one for one in scene.status["conditions"] if one["type"] == "Complete")
    assert complete["message"] == (
        "stopped early at step 120 of 480; the export of step 90 in jobs/bot/export was reloaded and checked"
    )
    assert scene.status["result"]["exportedStep"] == 90
    assert scene.status["progress"]["display"] == "120/120"


@pytest.mark.parametrize(
    "message",
    ["", "not json", '{"outcome":"Succeeded","reason":"Succeeded"}'],
    ids=["none", "malformed", "without"],
)
def test_complete_without_a_result_is_a_failed_attempt(message):
    scene = Scene()
    scene.start()
    scene.end(1, None, [scene.ended_pod(1, 0, message, index, "Completed") for index in (0, 1)])
    scene.step(5)
    assert scene.says("Complete") == ("False", "InProgress")
    assert scene.says("Running") == ("False", "Restarting")
    assert scene.attempt(1)["reason"] == "Crash"
    assert "export" in scene.attempt(1)["message"]


def test_complete_whose_pods_are_gone_is_an_attempt_that_the_cluster_has_taken():
    scene = Scene(sftjob(failurePolicy={"maxRestarts": 0}))
    scene.start()
    scene.end(1, None, [])
    scene.step(5)
    assert scene.says("Complete") == ("False", "InProgress")
    assert scene.says("Failed") == ("False", "InProgress")
    assert (scene.attempt(1)["reason"], scene.attempt(1)["charged"]) == ("Disrupted", False)
    assert scene.attempt(1)["message"] == "its pods are gone, and its result with them"
    scene.step(10)
    assert "Job/bot-2" in created(scene)


def test_a_job_that_was_too_short_to_be_asked_shows_its_last_step_too():
    scene = Scene()
    scene.start()
    scene.end(1, None, [scene.ended_pod(1, 0, trained_outcome(), reason="Completed")])
    scene.step(5)
    told = scene.status["progress"]
    assert (told["display"], told["progressPercentage"], told["loss"]) == ("480/480", 100, "0.4900")


def test_complete_is_the_end_whatever_happens_to_the_children():
    scene = Scene()
    scene.start()
    scene.end(1, None, [scene.ended_pod(1, 0, trained_outcome(), reason="Completed")])
    scene.step(5)
    scene.objects.clear()
    scene.manifest["spec"]["suspend"] = True
    scene.manifest["metadata"]["generation"] = 2
    last = scene.step(5)
    assert (last.effects, last.events, last.requeue_after) == ((), (), None)
    assert scene.status["observedGeneration"] == 2
    assert scene.says("Complete") == ("True", "Trained")
    assert scene.step(5).status is None


def test_a_job_that_is_being_deleted_is_left_to_garbage_collection():
    scene = Scene()
    scene.start()
    scene.manifest["metadata"]["deletionTimestamp"] = "2026-01-01T12:01:00Z"
    last = scene.step(5)
    assert (last.effects, last.status, last.requeue_after) == ((), None, None)


def test_the_transition_time_moves_only_when_the_status_flips():
    scene = Scene()
    scene.step()
    first = scene.condition("Running")["lastTransitionTime"]
    scene.end(None, None, [scene.ended_pod(None, 0, prepared_outcome(), reason="Completed")])
    scene.step(3)
    assert scene.condition("Running")["reason"] == "ContainerCreating"
    assert scene.condition("Running")["lastTransitionTime"] == first
    scene.run(1)
    scene.step(4)
    assert scene.condition("Running")["lastTransitionTime"] == "2026-01-01T12:00:07Z"
    assert scene.condition("Accepted")["lastTransitionTime"] == first


def test_each_flip_is_one_event():
    scene = Scene()
    scene.start()
    scene.progress = progress()
    scene.step(10)
    scene.end(1, exited(70), [scene.ended_pod(1, 70, failed_outcome("Crash", "boom"))])
    scene.step(5)
    scene.step(10)
    scene.run(2)
    scene.step(10)
    scene.end(2, None, [scene.ended_pod(2, 0, trained_outcome(), reason="Completed")])
    scene.step(10)
    scene.step(10)
    assert [(event.type, event.reason) for event in scene.events] == [
        ("Normal", "Valid"),
        ("Normal", "DataReady"),
        ("Normal", "Fits"),
        ("Normal", "Starting"),
        ("Warning", "Restarting"),
        ("Normal", "Starting"),
        ("Normal", "Trained"),
    ]


def test_what_cannot_be_read_is_said_and_an_old_status_is_kept():
    manifest = sftjob()
    del manifest["spec"]["workspace"]
    scene = Scene()
    scene.start()
    manifest["status"] = scene.status
    found = unreadable(manifest, "spec.workspace: Field required", scene.now)
    assert found.status is not None
    said = {item["type"]: (item["status"], item["reason"]) for item in found.status["conditions"]}
    assert said["Accepted"] == ("False", "InvalidSpec")
    assert said["Prepared"] == ("True", "DataReady")
    assert found.status["attempts"] == scene.status["attempts"]
    assert (
        unreadable({**manifest, "status": found.status}, "spec.workspace: Field required", scene.now).status
        is None
    )
    assert unreadable({**manifest, "status": {"conditions": "many"}}, "x", scene.now).status is None


def test_the_status_survives_its_model_and_stays_small():
    scene = Scene(sftjob(failurePolicy={"maxRestarts": 50, "backoffSeconds": 0}))
    scene.start()
    for number in range(1, 16):
        scene.progress = progress(
            attempt=number,
            checkpoints=[
                {
                    "name": f"step-{step}",
                    "step": step,
                    "attempt": 1,
                    "bytes": 1,
                    "time": "x" * 500,
                    "loss": 1e300,
                }
                for step in range(30)
            ],
        )
        scene.run(number)
        scene.step(40)
        long = failed_outcome("Crash", "ü" * 900)
        scene.end(number, exited(70), [scene.ended_pod(number, 70, long)])
        scene.step(5)
    assert len(scene.status["attempts"]) == 10
    assert len(scene.status["checkpoints"]) == 10
    assert Status.model_validate(scene.status).model_dump(mode="json", by_alias=True, exclude_none=True) == (
        scene.status | {"checkpoints": scene.status["checkpoints"]}
    )
    assert len(json.dumps(scene.status)) < 48_000
