"""Another number of nodes under a gang that runs: save, stop, go on in the new size, charged to nobody."""

from __future__ import annotations

import pytest

from sftjob_operator.api.objects import Ref
from sftjob_operator.effects import Patch
from sftjob_operator.planning.hardware import Hardware
from worlds import Scene, exited, failed_outcome, merge, progress, sftjob


def training(hardware: Hardware | None = None, **spec) -> Scene:
    scene = Scene(sftjob(**spec)) if hardware is None else Scene(sftjob(**spec), hardware)
    scene.start()
    scene.progress = progress(last_verified_step=110)
    scene.step(10)
    return scene


def scale(scene: Scene, nodes: int) -> None:
    scene.manifest["spec"]["workers"]["nodes"] = nodes
    scene.manifest["metadata"]["generation"] += 1


def stop(scene: Scene, number: int = 1) -> None:
    """The pods have saved and are gone."""
    scene.progress = None
    scene.suspend(number)
    scene.step(5)


@pytest.mark.parametrize("nodes", [1, 4])
def test_a_running_job_saves_and_goes_on_at_once_with_the_new_number_of_nodes(nodes):
    scene = training(failurePolicy={"maxRestarts": 0})
    scale(scene, nodes)
    last = scene.step(5)
    assert [type(effect) for effect in last.effects] == [Patch]
    assert scene.job(1)["spec"]["suspend"] is True
    assert scene.says("Running") == ("False", "Resizing")
    assert scene.condition("Running")["message"] == (
        f"the pods of bot-1 save a checkpoint and stop; attempt 2 goes on with {nodes} nodes instead of 2"
    )
    assert scene.status["phase"] == "Resizing"
    assert scene.says("Suspended") == ("False", "NotSuspended")
    scene.suspend(1, active=2)
    assert scene.step(5).effects == (), "they still save"
    stop(scene)
    assert [job["metadata"]["name"] for job in scene.jobs()] == ["bot-2"]
    assert scene.job(2)["spec"]["parallelism"] == nodes
    first = scene.attempt(1)
    assert (first["reason"], first["charged"]) == ("Resized", False)
    assert first["message"] == f"spec.workers.nodes was changed from 2 to {nodes}"
    assert (scene.status["plan"]["worldSize"], scene.status["nodes"]) == (nodes, nodes)
    assert scene.status["restarts"] == 0


def test_a_change_taken_back_before_the_pods_are_down_lets_the_same_job_go_on():
    scene = training()
    scale(scene, 4)
    scene.step(5)
    scene.suspend(1, active=2)
    scale(scene, 2)
    scene.step(5)
    assert scene.job(1)["spec"]["suspend"] is False
    assert scene.says("Running") == ("False", "Resuming")
    assert len(scene.jobs()) == 1


def test_what_is_impossible_in_the_new_size_stops_nothing():
    scene = training()
    scale(scene, 3)
    assert scene.step(5).effects == ()
    assert scene.says("Accepted") == ("False", "BatchNotDivisible")
    assert scene.condition("Running")["status"] == "True"


def test_ranks_that_share_sequences_are_not_torn_apart():
    scene = training(
        deepspeed={"sequenceParallelSize": 3}, workers={"nodes": 3}, training={"globalBatchSize": 12}
    )
    scale(scene, 4)
    assert scene.step(5).effects == ()
    assert scene.says("Accepted") == ("False", "SequenceParallelNotDivisible")
    assert scene.condition("Running")["status"] == "True"
    scale(scene, 6)
    scene.step(5)
    assert scene.says("Running") == ("False", "Resizing")


def test_what_does_not_fit_in_the_new_size_trains_on_in_the_old_one_and_says_so():
    scene = training(Hardware(host_memory_bytes=9 * 2**29), workers={"nodes": 2})
    assert scene.status["plan"]["zeroStage"] == 1
    scale(scene, 1)
    assert scene.step(5).effects == ()
    assert scene.condition("Running")["status"] == "True"
    assert (
        "; spec.workers.nodes: 1 is not taken up: training needs about"
        in (scene.condition("Running")["message"])
    )


def test_a_volume_that_several_nodes_cannot_share_stops_nothing():
    scene = Scene(sftjob(workers={"nodes": 1}))
    claim = Ref("v1", "PersistentVolumeClaim", "team", "ws")
    scene.found[claim] = {"spec": {"accessModes": ["ReadWriteOnce"]}}
    scene.start()
    scale(scene, 2)
    assert scene.step(5).effects == ()
    assert "is ReadWriteOnce, which 2 nodes cannot share" in scene.condition("Running")["message"]


def test_a_pod_on_a_dead_node_does_not_hold_up_a_resize():
    scene = training()
    scale(scene, 4)
    scene.step(5)
    scene.progress = None
    scene.suspend(1)
    scene.job(1)["status"]["terminating"] = 1
    scene.pods = [scene.pod(1, 0, phase="Running", metadata={"deletionTimestamp": "2026-01-01T12:00:10Z"})]
    scene.step(300)
    assert scene.attempt(1)["reason"] == "NodeLost"
    scene.step(10)
    assert scene.job(2)["spec"]["parallelism"] == 4


def test_a_gang_that_counts_as_failed_for_stopping_is_not_charged_and_goes_on_at_once():
    scene = training(failurePolicy={"maxRestarts": 0})
    scale(scene, 4)
    scene.step(5)
    saved = failed_outcome("Interrupted", "saved step 130", last_verified_step=130)
    scene.end(1, exited(74), [scene.ended_pod(1, 74, saved)])
    scene.step(5)
    assert (scene.attempt(1)["reason"], scene.attempt(1)["charged"]) == ("Resized", False)
    assert scene.status["lastVerifiedStep"] == 130
    assert scene.job(2)["spec"]["parallelism"] == 4


def test_a_suspended_job_is_resized_when_it_goes_on():
    scene = training()
    scene.manifest["spec"] = merge(scene.manifest["spec"], {"suspend": True, "workers": {"nodes": 4}})
    scene.step(5)
    assert scene.says("Running") == ("False", "Suspending")
    stop(scene)
    assert scene.says("Suspended") == ("True", "SuspendedByUser")
    scene.manifest["spec"]["suspend"] = False
    scene.step(5)
    assert scene.job(2)["spec"]["parallelism"] == 4


def test_a_queue_that_holds_the_job_is_not_overruled():
    scene = training()
    scene.job(1)["spec"]["suspend"] = True
    scene.job(1)["status"] = {"active": 2}
    scale(scene, 4)
    assert scene.step(5).effects == ()
    assert scene.says("Running") == ("False", "Queued")


@pytest.mark.parametrize(
    ("nodes", "precision", "stages", "memory"),
    [
        ([1, 2], "fp32", [0, 0], 80),
        ([8, 1], "fp32", [1, 1], 80),
        ([1, 2], "bf16", [2, 2], 80),
        ([8, 1], "bf16", [2, 2], 80),
        ([8, 2], "bf16", [2, 3], 4.35),
        ([2, 8], "bf16", [3, 2], 4.35),
    ],
)
def test_a_checkpoint_without_partitions_keeps_its_stage_and_others_take_what_fits(
    nodes, precision, stages, memory
):
    hardware = Hardware(gpu_memory_bytes=int(memory * 2**30))
    workers = {"nodes": nodes[0], "gpusPerNode": 1}
    scene = training(hardware, workers=workers, training={"precision": precision})
    found = [scene.status["plan"]["zeroStage"]]
    scale(scene, nodes[1])
    scene.step(5)
    stop(scene)
    found.append(scene.status["plan"]["zeroStage"])
    assert found == stages


def test_what_stopped_may_have_saved_although_nobody_heard_of_it():
    scene = Scene(sftjob(workers={"nodes": 1}))
    scene.start()
    assert scene.status["plan"]["zeroStage"] == 0
    scale(scene, 2)
    scene.step(5)
    stop(scene)
    assert "lastVerifiedStep" not in scene.status
    assert scene.status["plan"]["zeroStage"] == 0


def test_a_start_that_failed_before_its_first_step_leaves_the_stage_open():
    scene = Scene(sftjob(workers={"nodes": 1}, failurePolicy={"backoffSeconds": 0}))
    scene.start()
    scale(scene, 2)
    scene.end(1, exited(76), [scene.ended_pod(1, 76)])
    scene.step(5)
    assert scene.status["plan"]["zeroStage"] == 2


def test_the_stage_of_the_checkpoint_outlives_a_size_in_which_nothing_fits():
    workers, whole = {"nodes": 1, "gpusPerNode": 1}, {"precision": "fp32"}
    scene = training(Hardware(gpu_memory_bytes=80 * 2**30), workers=workers, training=whole)
    scene.progress = None
    scene.end(1, exited(70), [scene.ended_pod(1, 70)])
    scene.hardware = Hardware(gpu_memory_bytes=2**28)
    scale(scene, 2)
    scene.step(60)
    assert scene.says("Planned") == ("False", "DoesNotFit")
    scene.hardware = Hardware(gpu_memory_bytes=80 * 2**30)
    scene.step(60)
    assert scene.job(2)["spec"]["parallelism"] == 2
    assert scene.status["plan"]["zeroStage"] == 0
