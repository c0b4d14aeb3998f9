"""A spec that changes under an open attempt: taken up at once where no pod runs, said where they do."""

from __future__ import annotations

from dataclasses import replace

import pytest

from worlds import Scene, merge, progress, sftjob


def edit(scene: Scene, **spec) -> None:
    scene.manifest["spec"] = merge(scene.manifest["spec"], spec)
    scene.manifest["metadata"]["generation"] += 1


def stuck() -> Scene:
    """Attempt 1 exists, and its pods do not start."""
    scene = Scene(sftjob(workers={"nodes": 4, "image": "nope:1"}))
    scene.prepare()
    scene.step()
    scene.starting(1)
    scene.step(60)
    return scene


@pytest.mark.parametrize(
    "workers",
    [{"nodes": 2}, {"image": "right:1"}, {"podTemplate": {"spec": {"nodeSelector": {"gpu": "h100"}}}}],
    ids=["nodes", "image", "node selector"],
)
def test_an_attempt_that_does_not_start_is_replaced_by_one_of_the_repaired_spec(workers):
    scene = stuck()
    edit(scene, workers=workers)
    scene.step(5)
    assert scene.jobs() == []
    assert scene.says("Running") == ("False", "Restarting")
    assert scene.condition("Running")["message"].startswith(
        "attempt 1 failed (SpecChanged): the spec was changed before its pods ran; attempt 2 starts at"
    )
    assert scene.attempt(1)["charged"] is False
    scene.step(10)
    assert [job["metadata"]["name"] for job in scene.jobs()] == ["bot-2"]
    assert scene.status["restarts"] == 0
    assert scene.job(2)["spec"]["parallelism"] == workers.get("nodes", 4)
    assert [ref.name for ref in scene.objects if ref.kind == "ConfigMap" and "prepare" not in ref.name] == [
        "bot-2"
    ]


def test_a_running_attempt_runs_on_and_says_that_the_change_comes_later():
    scene = Scene()
    scene.start()
    scene.progress = progress()
    scene.step(10)
    edit(scene, checkpoint={"periodSteps": 10})
    scene.step(10)
    assert len(scene.jobs()) == 1
    assert scene.condition("Running")["message"] == (
        "attempt 1, step 120 of 480; the changed spec takes effect with the next attempt"
    )
    edit(scene, checkpoint={"periodSteps": None})
    scene.step(10)
    assert scene.condition("Running")["message"] == "attempt 1, step 120 of 480"


def test_a_spec_that_has_become_impossible_replaces_nothing():
    scene = stuck()
    edit(scene, workers={"nodes": 3})
    assert scene.step(5).effects == ()
    assert scene.says("Accepted") == ("False", "BatchNotDivisible")


def test_an_upgrade_of_the_operator_replaces_nothing():
    scene = Scene()
    scene.prepare()
    scene.step()
    scene.starting(1)
    scene.settings = replace(scene.settings, trainer_image="sftjob-trainer:next")
    assert scene.step(60).effects == ()


@pytest.mark.parametrize(
    "change",
    [
        {"suspend": False},
        {"workers": {"gpuResourceName": "nvidia.com/gpu"}},
        {"failurePolicy": {"maxRestarts": 9}},
    ],
    ids=["touched", "a default written out", "not of the Job"],
)
def test_what_makes_no_other_job_replaces_nothing(change):
    scene = stuck()
    edit(scene, **change)
    assert scene.step(5).effects == ()


def test_what_a_queue_holds_is_replaced_when_less_is_asked_for():
    scene = Scene(sftjob(labels={"kueue.x-k8s.io/queue-name": "team-a"}, workers={"nodes": 4}))
    scene.prepare()
    scene.step()
    scene.job(1)["spec"]["suspend"] = True
    scene.suspend(1)
    scene.step(5)
    edit(scene, workers={"nodes": 2})
    scene.step(5)
    scene.step(10)
    assert [job["spec"]["parallelism"] for job in scene.jobs()] == [2]


def test_an_edit_during_a_suspension_is_taken_up_when_the_job_goes_on():
    scene = Scene()
    scene.start()
    edit(scene, suspend=True)
    scene.step(5)
    scene.suspend(1, active=2)
    edit(scene, workers={"image": "other:1"})
    scene.step(5)
    assert len(scene.jobs()) == 1, "the pods still save"
    scene.suspend(1)
    scene.step(5)
    edit(scene, suspend=False)
    scene.step(5)
    scene.step(10)
    assert [job["metadata"]["name"] for job in scene.jobs()] == ["bot-2"]
