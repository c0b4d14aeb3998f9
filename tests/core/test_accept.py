"""What is refused before anything runs: by name, with the fix, and with the nearest valid values."""

from __future__ import annotations

import pytest

from sftjob_operator.planning.intent import intent
from sftjob_operator.policy.accept import objection, read_sftjob
from sftjob_operator.settings import Settings
from worlds import Scene, merge, sftjob

RAW = "spec.deepspeed.config"


def raw(config: dict, **typed) -> dict:
    return merge(typed, {"deepspeed": {"config": config}})


def refused(spec: dict) -> tuple[str, str]:
    found = objection(read_sftjob(sftjob(**spec)), Settings())
    assert found is not None
    return found.reason, found.message


@pytest.mark.parametrize(
    ("spec", "both"),
    [
        pytest.param(
            raw({"zero_optimization": {"stage": 3}}, deepspeed={"zeroStage": 2}),
            (f"{RAW}.zero_optimization.stage is 3", "spec.deepspeed.zeroStage is 2"),
            id="zero stage",
        ),
        pytest.param(
            raw({"bf16": {"enabled": True}}, training={"precision": "fp32"}),
            (f"{RAW}.bf16.enabled is true", "spec.training.precision is fp32"),
            id="bf16 against fp32",
        ),
        pytest.param(
            raw({"bf16": {"enabled": False}}, training={"precision": "bf16"}),
            (f"{RAW}.bf16.enabled is false", "spec.training.precision is bf16"),
            id="not bf16 against bf16",
        ),
        pytest.param(
            raw({"fp16": {"enabled": True}}, training={"precision": "bf16"}),
            (f"{RAW}.fp16.enabled is true", "spec.training.precision is bf16"),
            id="fp16",
        ),
        pytest.param(
            raw({"fp16": {"enabled": False}}, training={"precision": "fp16"}),
            (f"{RAW}.fp16.enabled is false", "spec.training.precision is fp16"),
            id="not fp16 against fp16",
        ),
        pytest.param(
            raw({"bf16": {"enabled": True}, "fp16": {"enabled": True}}),
            (f"{RAW}.bf16.enabled is true", f"{RAW}.fp16.enabled is true"),
            id="bf16 against fp16",
        ),
        pytest.param(
            raw({"train_batch_size": 32}, training={"globalBatchSize": 16}),
            (f"{RAW}.train_batch_size is 32", "spec.training.globalBatchSize is 16"),
            id="batch",
        ),
        pytest.param(
            raw({"train_micro_batch_size_per_gpu": 4}, deepspeed={"microBatchSize": 2}),
            (f"{RAW}.train_micro_batch_size_per_gpu is 4", "spec.deepspeed.microBatchSize is 2"),
            id="micro-batch",
        ),
        pytest.param(
            raw(
                {"gradient_accumulation_steps": 2},
                training={"globalBatchSize": 16},
                deepspeed={"microBatchSize": 2},
            ),
            (f"{RAW}.gradient_accumulation_steps is 2", "spec.training.globalBatchSize is 16"),
            id="accumulation",
        ),
        pytest.param(
            raw({"gradient_clipping": 0.5}, training={"maxGradNorm": 1.0}),
            (f"{RAW}.gradient_clipping is 0.5", "spec.training.maxGradNorm is 1.0"),
            id="clipping",
        ),
        pytest.param(
            raw(
                {"zero_optimization": {"offload_optimizer": {"device": "cpu"}}},
                deepspeed={"offloadOptimizer": "None"},
            ),
            (f"{RAW}.zero_optimization.offload_optimizer.device is cpu", "offloadOptimizer is None"),
            id="offloading",
        ),
    ],
)
def test_a_raw_key_that_contradicts_a_typed_field_is_refused_naming_both(spec, both):
    reason, message = refused(spec)
    assert reason == "DeepSpeedConfigConflict"
    for part in both:
        assert part in message


@pytest.mark.parametrize(
    ("config", "advice"),
    [
        ({"optimizer": {"type": "AdamW"}}, "spec.training.optimizer"),
        ({"scheduler": {"type": "WarmupLR"}}, "spec.training.scheduler"),
        ({"fp16": {"loss_scale": 128}}, "fp16.loss_scale: remove it; the scale is dynamic"),
        ({"fp16": {"fp16_master_weights_and_grads": True}}, "master weights and gradients are kept in fp32"),
        ({"optimizer": {"type": "Adafactor"}}, "Adafactor keeps factors of a matrix's rows and columns"),
        ({"amp": {"enabled": True}}, "spec.training.precision"),
        (
            {"activation_checkpointing": {"partition_activations": True}},
            "spec.deepspeed.activationCheckpointing",
        ),
        (
            {"zero_optimization": {"offload_param": {"device": "nvme"}}},
            "spec.deepspeed.offloadParameters: CPU",
        ),
        ({"zero_optimization": {"offload_optimizer": {"ratio": 0.3}}}, "offload_optimizer.ratio: remove it"),
        ({"zero_optimization": {"cpu_offload": True}}, "set spec.deepspeed.offloadOptimizer"),
        ({"tensor_parallel": {"autotp_size": 2}}, "set spec.deepspeed.tensorParallelSize instead"),
        ({"zero_force_ds_cpu_optimizer": True}, "the optimizer on the CPU is torch's"),
        ({"pipeline": {"stages": 2}}, "pipeline"),
        ({"data_efficiency": {"enabled": True}}, "data_efficiency"),
        ({"zero_optimizaton": {"stage": 3}}, "zero_optimizaton: DeepSpeed has no such key"),
        ({"zero_optimizaton": "auto"}, "write zero_optimization, or remove it"),
        (
            {"zero_optimization": {"overlap_com": True}},
            "zero_optimization.overlap_com: DeepSpeed has no such",
        ),
        ({"zero_optimization": {"overlap_com": True}}, "write overlap_comm, or remove it"),
        ({"made_up": 1}, "would ignore it; remove it"),
        ({"nebula": {}}, "nebula: DeepSpeed has no such key"),
        ({"bfloat16": {"enabled": True}}, "write bf16"),
        ({"bf16": {"bf16_optimizer_states": True}}, "set spec.training.masterWeights instead"),
        ({"optimizer": {"enabled": False}}, "spec.training.optimizer"),
        ({"scheduler": {"enabled": False}}, "spec.training.scheduler"),
        ({"data_types": {"grad_accum_dtype": "bf16"}}, "data_types.grad_accum_dtype: remove it"),
        ({"zero_optimization": {"compute_grad_norm": False}}, "always clipped by spec.training.maxGradNorm"),
        ({"zero_optimization": {"load_from_fp32_weights": False}}, "set spec.checkpoint instead"),
        ({"zero_optimization": {"zenflow": {"topk_ratio": 0.1}}}, "zero_optimization.zenflow"),
        ({"gradient_allreduce_op": "sum"}, "gradient_allreduce_op"),
        ({"x" * 100_000: 1}, "would ignore it"),
    ],
)
def test_a_raw_key_that_would_be_ignored_is_refused_with_what_to_do_instead(config, advice):
    reason, message = refused(raw(config))
    assert reason == "DeepSpeedConfigUnsupported"
    assert advice in message


@pytest.mark.parametrize(
    ("config", "path"),
    [
        ({"zero_optimization": True}, "zero_optimization"),
        ({"zero_optimization": False}, "zero_optimization"),
        ({"data_types": 1}, "data_types"),
        ({"zero_optimization": {"stage": "2"}}, "zero_optimization.stage"),
        ({"zero_optimization": {"stage": 4}}, "zero_optimization.stage"),
        ({"bf16": {"enabled": "yes"}}, "bf16.enabled"),
        (
            {"zero_optimization": {"offload_param": {"pin_memory": True}}},
            "zero_optimization.offload_param.device",
        ),
        ({"zero_optimization": {"offload_param": 1}}, "zero_optimization.offload_param"),
        ({"fp16": 1}, "fp16"),
        ({"train_batch_size": 0}, "train_batch_size"),
        ({"train_batch_size": 16.0}, "train_batch_size"),
        ({"gradient_accumulation_steps": True}, "gradient_accumulation_steps"),
        ({"gradient_clipping": 0}, "gradient_clipping"),
    ],
)
def test_a_raw_value_of_the_wrong_kind_is_refused(config, path):
    reason, message = refused(raw(config))
    assert reason == "DeepSpeedConfigInvalid"
    assert f"{RAW}.{path}" in message


def test_a_raw_key_fills_the_typed_field_that_is_unset_and_the_rest_is_handed_on():
    job = read_sftjob(
        sftjob(
            **raw(
                {
                    "zero_optimization": {
                        "stage": 3,
                        "overlap_comm": True,
                        "reduce_bucket_size": "auto",
                        "offload_optimizer": {"device": "cpu", "pin_memory": False},
                        "offload_param": {"device": "cpu"},
                    },
                    "bf16": {"enabled": True, "immediate_grad_update": True},
                    "fp16": {"enabled": False},
                    "optimizer": "auto",
                    "train_batch_size": 8,
                    "train_micro_batch_size_per_gpu": 2,
                    "gradient_accumulation_steps": "auto",
                    "gradient_clipping": 0.5,
                    "wall_clock_breakdown": True,
                }
            )
        )
    )
    assert objection(job, Settings()) is None
    found = intent(job.spec)
    assert (found.zero_stage, found.precision, found.max_grad_norm) == (3, "bf16", 0.5)
    assert (found.global_batch_size, found.micro_batch_size) == (8, 2)
    assert (found.offload_optimizer, found.offload_parameters) == ("CPU", "CPU")
    assert found.raw == {
        "zero_optimization": {"overlap_comm": True, "offload_optimizer": {"pin_memory": False}},
        "bf16": {"immediate_grad_update": True},
        "wall_clock_breakdown": True,
    }


def test_what_says_that_it_is_switched_off_is_let_pass_and_not_handed_on():
    spec = raw(
        {
            "zero_optimization": {
                "offload_optimizer": {"device": "none", "pin_memory": True},
                "compute_grad_norm": True,
                "cpu_offload": False,
            },
            "fp16": {"enabled": False, "loss_scale": 0},
            "amp": {"enabled": False, "opt_level": "O1"},
            "prescale_gradients": False,
            "scheduler": None,
        }
    )
    job = read_sftjob(sftjob(**spec))
    assert objection(job, Settings()) is None
    assert intent(job.spec).raw == {}


GPU = {"nodes": 1, "gpusPerNode": 2}


@pytest.mark.parametrize(
    ("config", "typed", "precision", "handed"),
    [
        ({"fp16": {"enabled": True, "loss_scale_window": 100}}, None, "fp16", {"loss_scale_window": 100}),
        ({"fp16": {"hysteresis": 2}}, "fp16", "fp16", {"hysteresis": 2}),
        ({"fp16": {"enabled": True}, "bf16": {"enabled": False}}, None, "fp16", None),
        ({"bf16": {"enabled": False}}, "fp16", "fp16", None),
        ({"bf16": {"enabled": True}, "fp16": {"enabled": False}}, None, "bf16", None),
        ({"bf16": {"enabled": False}, "fp16": {"enabled": False, "hysteresis": 2}}, None, "fp32", None),
        ({"fp16": {"enabled": False}}, None, None, None),
    ],
)
def test_deepspeeds_sections_say_which_precision_is_meant(config, typed, precision, handed):
    training = {"precision": typed} if typed else {}
    job = read_sftjob(sftjob(**raw(config, workers=GPU, training=training)))
    assert objection(job, Settings()) is None
    found = intent(job.spec)
    assert (found.precision, found.raw.get("fp16")) == (precision, handed)


def test_settings_of_fp16_are_refused_where_another_precision_is_wanted():
    reason, message = refused(raw({"fp16": {"hysteresis": 2}}, training={"precision": "bf16"}))
    assert reason == "DeepSpeedConfigUnsupported"
    assert "set spec.training.precision: fp16; the precision is bf16" in message


def test_equal_values_are_no_conflict():
    spec = raw(
        {"zero_optimization": {"stage": 2}, "train_batch_size": 16, "gradient_clipping": 1},
        deepspeed={"zeroStage": 2},
        training={"globalBatchSize": 16, "maxGradNorm": 1.0},
    )
    assert objection(read_sftjob(sftjob(**spec)), Settings()) is None


def test_micro_batch_and_accumulation_make_the_global_batch_where_it_is_unset():
    spec = raw({"train_micro_batch_size_per_gpu": 3, "gradient_accumulation_steps": 5})
    assert intent(read_sftjob(sftjob(**spec)).spec).global_batch_size == 2 * 3 * 5


def test_accumulation_alone_leaves_the_micro_batch():
    spec = raw({"gradient_accumulation_steps": 4}, training={"globalBatchSize": 16})
    assert intent(read_sftjob(sftjob(**spec)).spec).micro_batch_size == 2


@pytest.mark.parametrize(
    ("workers", "training", "deepspeed", "words"),
    [
        ({"nodes": 3}, {"globalBatchSize": 16}, {}, ("(16)", "ranks (3)", "15 or 18")),
        ({"nodes": 2, "processesPerNode": 3}, {"globalBatchSize": 4}, {}, ("(4)", "ranks (6)", "is: 6")),
        (
            {"nodes": 2},
            {"globalBatchSize": 16},
            {"microBatchSize": 3},
            ("2 ranks times microBatchSize 3", "12 or 18"),
        ),
        ({"nodes": 5}, {}, {}, ("16, the default", "15 or 20")),
    ],
)
def test_a_batch_that_the_ranks_do_not_divide_names_the_nearest_that_they_do(
    workers, training, deepspeed, words
):
    reason, message = refused({"workers": workers, "training": training, "deepspeed": deepspeed})
    assert reason == "BatchNotDivisible"
    assert message.startswith("spec.training.globalBatchSize")
    for part in words:
        assert part in message


@pytest.mark.parametrize(
    ("workers", "world_size"),
    [
        ({"nodes": 2, "gpusPerNode": 8}, 16),
        ({"nodes": 2, "gpusPerNode": 0}, 2),
        ({"nodes": 2, "gpusPerNode": 0, "processesPerNode": 4}, 8),
        ({"nodes": None, "gpusPerNode": None}, 1),
    ],
)
def test_the_number_of_ranks(workers, world_size):
    assert intent(read_sftjob(sftjob(workers=workers)).spec).world_size == world_size


@pytest.mark.parametrize(
    ("spec", "reason", "words"),
    [
        (
            {"workers": {"env": [{"name": "SFTJOB_RUN", "value": "/"}]}},
            "ReservedName",
            "spec.workers.env: SFTJOB_RUN",
        ),
        ({"prepare": {"env": [{"name": "SFTJOB_RUN"}]}}, "ReservedName", "spec.prepare.env"),
        ({"workers": {"env": [{"name": "JOB_COMPLETION_INDEX"}]}}, "ReservedName", "JOB_COMPLETION_INDEX"),
        (
            {"workers": {"podTemplate": {"metadata": {"labels": {"sftjob.dev/role": "x"}}}}},
            "ReservedName",
            "sftjob.dev/role",
        ),
        (
            {"prepare": {"podTemplate": {"spec": {"volumes": [{"name": "run", "emptyDir": {}}]}}}},
            "ReservedName",
            "spec.prepare.podTemplate.spec.volumes: run",
        ),
        (
            {"workers": {"gpusPerNode": 2, "resources": {"limits": {"nvidia.com/gpu": 4}}}},
            "ResourceConflict",
            "spec.workers.gpusPerNode is 2",
        ),
        ({"workers": {"resources": {"limits": {"memory": "64 GB"}}}}, "InvalidQuantity", "limits.memory"),
        ({"workers": {"resources": {"limits": {"memory": "-1Gi"}}}}, "InvalidQuantity", "limits.memory"),
        (
            {"workers": {"resources": {"limits": {"memory": "1e999999999"}}}},
            "InvalidQuantity",
            "limits.memory",
        ),
        ({"prepare": {"resources": {"requests": {"cpu": "1e400"}}}}, "InvalidQuantity", "requests.cpu"),
        ({"workers": {"sharedMemory": "lots"}}, "InvalidQuantity", "spec.workers.sharedMemory"),
        ({"data": {"train": [{"inline": "x" * 65536}] * 9}}, "InlineDataTooLarge", "spec.data"),
    ],
)
def test_what_would_only_fail_later_is_refused_now(spec, reason, words):
    found, message = refused(spec)
    assert found == reason
    assert words in message


CPUS = {"nodes": 2, "gpusPerNode": 0, "processesPerNode": 3}


@pytest.mark.parametrize(
    ("spec", "reason", "words"),
    [
        (
            {"workers": CPUS, "deepspeed": {"sequenceParallelSize": 4}, "training": {"globalBatchSize": 12}},
            "SequenceParallelNotDivisible",
            "spec.deepspeed.sequenceParallelSize (4) does not divide the number of ranks (6)",
        ),
        (
            {"workers": CPUS, "deepspeed": {"sequenceParallelSize": 2}, "training": {"globalBatchSize": 4}},
            "BatchNotDivisible",
            "is not divisible by the number of groups of 2 ranks (3); the nearest that is: 3 or 6",
        ),
        (
            {"workers": CPUS, "deepspeed": {"tensorParallelSize": 2}, "training": {"globalBatchSize": 6}},
            "TensorParallelNotDivisible",
            "spec.deepspeed.tensorParallelSize (2) does not divide the number of ranks of a node (3), which is "
            "spec.workers.gpusPerNode or processesPerNode; what does: 1, 3",
        ),
        (
            {"workers": CPUS, "deepspeed": {"tensorParallelSize": 3}, "training": {"globalBatchSize": 3}},
            "BatchNotDivisible",
            "is not divisible by the number of groups of 3 ranks (2); the nearest that is: 2 or 4",
        ),
        (
            raw({"sequence_parallel_size": 2}),
            "DeepSpeedConfigUnsupported",
            "sequence_parallel_size: remove it; set spec.deepspeed.sequenceParallelSize instead",
        ),
    ],
)
def test_ranks_that_share_sequences_or_layers_have_to_come_out_even(spec, reason, words):
    found, message = refused(spec)
    assert found == reason
    assert words in message


@pytest.mark.parametrize("what", ["sequenceParallelSize", "tensorParallelSize"])
def test_ranks_that_share_sequences_or_layers_count_as_one_in_the_batch(what):
    spec = {"workers": CPUS, "deepspeed": {what: 3}, "training": {"globalBatchSize": 2}}
    assert objection(read_sftjob(sftjob(**spec)), Settings()) is None


def test_an_unacceptable_spec_makes_nothing_and_is_repaired_by_a_second_apply():
    scene = Scene(sftjob(workers={"nodes": 3}))
    last = scene.step()
    assert (last.effects, last.requeue_after) == ((), None)
    assert scene.says("Accepted") == ("False", "BatchNotDivisible")
    assert scene.says("Running") == ("False", "NotAccepted")
    assert scene.status["phase"] == "Rejected"
    assert [(event.type, event.reason) for event in last.events] == [("Warning", "BatchNotDivisible")]
    scene.manifest["spec"]["workers"]["nodes"] = 2
    scene.step()
    assert scene.says("Accepted") == ("True", "Valid")
    assert scene.says("Running") == ("False", "Preparing")


def test_what_cannot_be_parsed_names_the_field():
    manifest = sftjob(workers={"nodes": "two"})
    with pytest.raises(ValueError, match=r"^spec\.workers\.nodes: "):
        read_sftjob(manifest)
