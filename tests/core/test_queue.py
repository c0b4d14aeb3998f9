"""Suspension and resizing of what stands in a queue of Kueue's, which lets go of a suspended Job that is admitted."""

from __future__ import annotations

import pytest

from sftjob_operator.api.objects import Ref
from sftjob_operator.effects import Delete
from worlds import Scene, prepared_outcome, progress, sftjob

QUEUE = {"kueue.x-k8s.io/queue-name": "team-a"}
STUCK = {"deletionTimestamp": "2026-01-01T12:00:10Z"}


def training() -> Scene:
    scene = Scene(sftjob(labels=QUEUE, failurePolicy={"maxRestarts": 0}))
    scene.start()
    scene.progress = progress(last_verified_step=110)
    scene.step(10)
    return scene


def change(scene: Scene, **spec) -> None:
    scene.manifest["spec"] |= spec
    scene.manifest["metadata"]["generation"] += 1


def test_a_suspended_job_is_deleted_and_gone_on_from_by_another_attempt():
    scene = training()
    change(scene, suspend=True)
    last = scene.step(5)
    uid = scene.job(1)["metadata"]["uid"]
    assert last.effects == (Delete(Ref("batch/v1", "Job", "team", "bot-1"), uid, foreground=True),)
    for _ in range(3):
        last = scene.step(5)
        assert (last.effects, last.requeue_after) == ((), 5), "its pods save"
        assert scene.says("Suspended") == ("False", "Suspending")
        assert scene.says("Running") == ("False", "Suspending")
    scene.gone(1)
    scene.step(5)
    assert scene.says("Suspended") == ("True", "SuspendedByUser")
    record = scene.attempt(1)
    assert (record["reason"], record["charged"], record["message"]) == (
        "Interrupted",
        False,
        "stopped by a suspension",
    )
    assert scene.says("Failed") == ("False", "InProgress")
    change(scene, suspend=False)
    scene.progress = None
    scene.step(60)
    assert scene.attempt(2)["state"] == "Pending"
    assert scene.job(2)["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "team-a"


def test_what_the_queue_holds_leaves_it_when_the_user_suspends_it():
    scene = Scene(sftjob(labels=QUEUE))
    scene.prepare()
    scene.step()
    scene.job(1)["spec"]["suspend"] = True
    scene.step(5)
    assert scene.says("Running") == ("False", "Queued")
    change(scene, suspend=True)
    scene.step(5)
    scene.gone(1)
    scene.step(5)
    assert scene.says("Suspended") == ("True", "SuspendedByUser")


def test_a_resized_job_is_deleted_and_goes_on_in_the_new_size_once_its_pods_are_gone():
    scene = training()
    change(scene, workers={"nodes": 4, "gpusPerNode": 0})
    assert [type(effect) for effect in scene.step(5).effects] == [Delete]
    for _ in range(3):
        assert scene.step(5).effects == ()
        assert scene.says("Running") == ("False", "Resizing")
    assert len(scene.jobs()) == 1
    scene.gone(1)
    scene.progress = None
    scene.step(5)
    assert scene.job(2)["spec"]["parallelism"] == 4
    assert (scene.attempt(1)["reason"], scene.attempt(1)["charged"]) == ("Resized", False)
    assert scene.attempt(1)["message"] == "spec.workers.nodes was changed from 2 to 4"


def test_preparation_is_deleted_and_made_again():
    scene = Scene(sftjob(labels=QUEUE))
    scene.step()
    scene.run(None)
    name = scene.job(None)["metadata"]["name"]
    change(scene, suspend=True)
    scene.step(5)
    scene.step(5)
    assert scene.says("Suspended") == ("False", "Suspending")
    scene.gone(None)
    scene.step(5)
    assert scene.says("Suspended") == ("True", "SuspendedByUser")
    change(scene, suspend=False)
    scene.step(5)
    assert scene.job(None)["metadata"]["name"] == name
    scene.end(None, None, [scene.ended_pod(None, 0, prepared_outcome(), reason="Completed")])
    scene.step(5)
    assert scene.attempt(1)["state"] == "Pending"


@pytest.mark.parametrize("number", [None, 1], ids=["prepare", "attempt"])
def test_a_pod_on_a_dead_node_does_not_hold_it_up(number):
    scene = Scene(sftjob(labels=QUEUE))
    scene.step() if number is None else scene.start()
    scene.run(number)
    change(scene, suspend=True)
    scene.step(5)
    scene.pods = [scene.pod(number, 0, phase="Running", metadata=STUCK)]
    scene.step(300)
    assert scene.says("Suspended") == ("True", "SuspendedByUser")
    change(scene, suspend=False)
    scene.step(5)
    scene.step(60)
    assert len(scene.jobs("prepare" if number is None else "train")) == 1
    assert scene.says("Running")[1] != "Stopping"
