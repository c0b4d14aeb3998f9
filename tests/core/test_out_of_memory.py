"""A GPU out of memory: the next attempt has a smaller plan of the same global batch, as far as the planner chose it."""

from __future__ import annotations

import json

import pytest

from sftjob_operator.api.objects import Ref
from sftjob_operator.planning.hardware import Hardware, quantity_bytes
from sftjob_operator.world import Refusal
from worlds import Scene, exited, failed_outcome, sftjob


def training(deepspeed=None, gpus=8, **more) -> Scene:
    spec = {"training": {"globalBatchSize": 8 * gpus}, "failurePolicy": {"maxRestarts": 0}, **more}
    scene = Scene(
        sftjob(workers={"nodes": 1, "gpusPerNode": gpus}, deepspeed=deepspeed or {}, **spec),
        Hardware(gpu_memory_bytes=80 * 2**30),
    )
    scene.start()
    return scene


def run_out(scene: Scene, number: int) -> None:
    scene.run(number)
    scene.step(10)
    told = failed_outcome("GPUOutOfMemory", "CUDA out of memory", last_step=45, last_verified_step=40)
    scene.end(number, exited(76), [scene.ended_pod(number, 76, told)])
    scene.step(5)


def choices(scene: Scene) -> tuple[int, int, str]:
    plan = scene.status["plan"]
    return plan["microBatchSize"], plan["gradientAccumulationSteps"], plan["activationCheckpointing"]


def test_each_further_attempt_has_a_smaller_plan_until_nothing_is_left_and_none_is_charged():
    scene = training()
    found, hashes, needs = [choices(scene)], [], []
    for number in range(1, 6):
        hashes.append(scene.status["plan"]["hash"])
        needs.append(quantity_bytes(scene.status["plan"]["memory"]["perGPU"]))
        assert scene.attempt(number)["planHash"] == hashes[-1]
        run_out(scene, number)
        assert (scene.attempt(number)["reason"], scene.attempt(number)["charged"]) == (
            "GPUOutOfMemory",
            number == 5,
        )
        scene.step(10)
        found.append(choices(scene))
    assert found[:5] == [
        (4, 2, "None"),
        (2, 4, "None"),
        (1, 8, "None"),
        (1, 8, "Selective"),
        (1, 8, "Full"),
    ]
    assert len(set(hashes)) == 5
    assert needs == sorted(needs, reverse=True), "the estimate is that of the plan"
    assert scene.says("Failed") == ("True", "GPUOutOfMemory")
    assert scene.condition("Failed")["message"] == (
        "spec.failurePolicy.maxRestarts (0) is used up; the last attempt, 5: CUDA out of memory; delete the job and "
        "apply it again under the same name with a smaller spec.deepspeed.microBatchSize or with "
        "activationCheckpointing: Full; it goes on from its checkpoints"
    )


def test_the_estimate_of_a_smaller_plan_is_in_the_precision_that_was_asked_for():
    asked = {"globalBatchSize": 64, "precision": "fp32"}
    scene = training(training=asked)
    run_out(scene, 1)
    scene.step(10)
    plan = scene.status["plan"]
    same = {name: plan[name] for name in ("zeroStage", "microBatchSize", "activationCheckpointing")}
    assert plan["memory"]["perGPU"] == training(same, training=asked).status["plan"]["memory"]["perGPU"]


def test_the_pods_of_the_next_attempt_get_the_smaller_plan_and_the_same_global_batch():
    scene = training()
    before = trained_with(scene, 1)
    run_out(scene, 1)
    scene.step(10)
    after = trained_with(scene, 2)
    assert (before["microBatchSize"], after["microBatchSize"]) == (4, 2)
    batch = [each["microBatchSize"] * each["gradientAccumulationSteps"] * 8 for each in (before, after)]
    assert batch == [64, 64]
    assert scene.status["lastVerifiedStep"] == 40


def trained_with(scene: Scene, number: int) -> dict:
    found = next(
        each for ref, each in scene.objects.items() if (ref.kind, ref.name) == ("ConfigMap", f"bot-{number}")
    )
    return json.loads(found["data"]["train.json"])["training"]


def test_what_changes_is_said_while_it_waits_and_in_an_event():
    scene = training()
    run_out(scene, 1)
    words = "from the checkpoint of step 40 with a micro-batch of 2 instead of 4"
    assert scene.condition("Running")["message"].endswith(words)
    assert scene.events[-1].reason == "Restarting"
    assert scene.events[-1].message.endswith(words)
    scene.step(10)
    assert "micro-batch 2 x 4 per GPU" in scene.condition("Planned")["message"]


def test_once_nothing_can_be_halved_recomputing_is_what_changes():
    scene = training({"microBatchSize": 4})
    run_out(scene, 1)
    assert scene.condition("Running")["message"].endswith("step 40 with selective activation checkpointing")
    scene.step(10)
    assert choices(scene) == (4, 2, "Selective")
    run_out(scene, 2)
    assert scene.condition("Running")["message"].endswith("step 40 with full activation checkpointing")


@pytest.mark.parametrize(
    "deepspeed",
    [
        {"microBatchSize": 4, "activationCheckpointing": "None"},
        {"config": {"train_micro_batch_size_per_gpu": 4}, "activationCheckpointing": "None"},
    ],
    ids=["typed", "raw"],
)
def test_what_the_user_has_fixed_stays_and_is_charged(deepspeed):
    scene = training(deepspeed, failurePolicy={"maxRestarts": 1})
    before = scene.status["plan"]
    run_out(scene, 1)
    scene.step(10)
    assert scene.status["plan"] == before
    assert (scene.attempt(1)["charged"], scene.status["restarts"]) == (True, 1)
    assert scene.attempt(2)["planHash"] == before["hash"]


def test_layers_that_are_shared_are_recomputed_whole():
    scene = training({"microBatchSize": 1, "tensorParallelSize": 3}, gpus=3)
    assert choices(scene)[2] == "None"
    run_out(scene, 1)
    scene.step(10)
    assert choices(scene)[2] == "Full"


def test_a_pass_that_is_repeated_makes_a_plan_smaller_only_once():
    scene = training()
    run_out(scene, 1)
    before = json.dumps(scene.manifest["status"])
    scene.now = scene.now.replace(minute=scene.now.minute + 1)
    scene.take_pass()
    assert (choices(scene)[0], scene.attempt(2)["state"]) == (2, "Pending")
    scene.manifest["status"] = json.loads(before)  # the write was lost
    scene.step()
    for _ in range(3):
        scene.step(5)
    assert choices(scene)[0] == 2


def test_a_start_that_is_refused_makes_the_plan_smaller_only_once():
    scene = training()
    run_out(scene, 1)
    scene.refusal = Refusal(Ref("batch/v1", "Job", "team", "bot-2"), 403, "Forbidden", "exceeded quota: gpus")
    for _ in range(3):
        scene.step(60)
    assert (choices(scene)[0], len(scene.status["attempts"])) == (2, 1)
    scene.refusal = None
    scene.step(60)
    assert (choices(scene)[0], scene.attempt(2)["planHash"]) == (2, scene.status["plan"]["hash"])


def test_another_failure_with_the_smaller_plan_keeps_it():
    scene = training(failurePolicy={"maxRestarts": 3})
    run_out(scene, 1)
    scene.step(10)
    small = scene.status["plan"]["hash"]
    scene.end(2, exited(70), [scene.ended_pod(2, 70)])
    scene.step(60)
    assert scene.attempt(3)["planHash"] == small
