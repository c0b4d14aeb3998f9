"""Bytes and choices: the estimate against hand-made sums, and the order in which it gives way."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from sft_trainer.config import ModelFacts, TokenRange
from sftjob_operator.api.v1alpha1 import Spec
from sftjob_operator.planning.advice import fits_message, no_fit_message
from sftjob_operator.planning.hardware import Hardware, gibibytes, mebibytes, quantity_bytes
from sftjob_operator.planning.memory import Memory, estimate
from sftjob_operator.planning.plan import NoFit, Plan, available_bytes, plan
from sftjob_operator.planning.shape import Shape
from sftjob_operator.policy.accept import read_sftjob
from worlds import FACTS, GIB, sftjob

SMALL = ModelFacts.model_validate(FACTS["model"])
LLAMA_8B = ModelFacts(
    directory="m",
    resolved="m",
    architecture="LlamaForCausalLM",
    parameters=8_030_261_248,
    embedding_parameters=1_050_673_152,
    lora_parameters_per_rank=2_621_440,
    hidden_size=4096,
    intermediate_size=14336,
    layers=32,
    heads=32,
    vocabulary_size=128_256,
    tied_embeddings=False,
)
GPU80 = Hardware(gpu_memory_bytes=80 * GIB)


def spec(**parts) -> Spec:
    return read_sftjob(sftjob(**parts)).spec


def shape(**over) -> Shape:
    values = {
        "world_size": 8,
        "zero_stage": 0,
        "micro_batch_size": 1,
        "max_length": 2048,
        "checkpointing": "None",
        "precision": "bf16",
        "accelerator": "gpu",
        "lora_rank": None,
    }
    return Shape(**{**values, **over})


def bytes_per_parameter(memory: Memory) -> float:
    return (memory.weights + memory.gradients + memory.optimizer) / LLAMA_8B.parameters


@pytest.mark.parametrize(
    ("stage", "precision", "expected"),
    [
        (0, "bf16", 2 + (2 + 4) + 12),
        (1, "bf16", 2 + (2 + 4) + 12 / 8),
        (1, "fp16", 2 + (4 + 4 / 8) + 12 / 8),
        (2, "bf16", 2 + 4 / 8 + 12 / 8),
        (0, "fp32", 4 + 4 + 8),
        (1, "fp32", 4 + 4 + 12 / 8),
        (2, "fp32", 4 + 4 / 8 + 12 / 8),
    ],
)
def test_states_are_those_of_the_zero_paper_with_fp32_accumulation_and_deepspeeds_copies(
    stage, precision, expected
):
    memory = estimate(LLAMA_8B, shape(zero_stage=stage, precision=precision))
    assert bytes_per_parameter(memory) == pytest.approx(expected, rel=1e-6)


def test_stage_1_in_bf16_rounds_all_gradients_at_once_and_the_others_have_buckets():
    bucket = 200_000_000
    few, many = shape(zero_stage=1, max_length=64), shape(zero_stage=1, max_length=32_768)
    passing = estimate(LLAMA_8B, few).activations + estimate(LLAMA_8B, few).logits
    assert estimate(LLAMA_8B, few).buffers == 2 * LLAMA_8B.parameters - passing
    assert estimate(LLAMA_8B, many).buffers == 0, "by then activations are gone"
    assert estimate(LLAMA_8B, replace(few, precision="fp16")).buffers == 2 * 4 * bucket, "of the sums"
    assert estimate(LLAMA_8B, replace(few, zero_stage=2)).buffers == 2 * 2 * bucket
    adapters = 16 * LLAMA_8B.lora_parameters_per_rank
    assert estimate(LLAMA_8B, replace(few, zero_stage=2, lora_rank=16)).buffers == 2 * 2 * adapters


def test_an_offloaded_optimizer_at_stage_1_leaves_sums_and_a_partition_of_them_on_the_gpu():
    memory = estimate(LLAMA_8B, shape(zero_stage=1, offload_optimizer="CPU"))
    assert memory.gradients == 4 * LLAMA_8B.parameters + 4 * LLAMA_8B.parameters // 8
    assert memory.buffers == 2 * 4 * 200_000_000 + 2 * 128_256 * 4096


def test_qlora_keeps_linear_layers_in_half_a_byte_and_their_scales():
    memory = estimate(LLAMA_8B, shape(lora_rank=16, quantised=True))
    linear = LLAMA_8B.parameters - LLAMA_8B.embedding_parameters
    others = LLAMA_8B.embedding_parameters + 16 * LLAMA_8B.lora_parameters_per_rank
    computing = 4096 * 14336 * 2  # one matrix, as it is multiplied
    expected = linear * (0.5 + 1 / 64 + 1 / 4096) + 2 * others + computing
    assert memory.weights == pytest.approx(expected, rel=1e-6)


def test_rows_of_added_tokens_are_trained_beside_adapters():
    longer = LLAMA_8B.model_copy(update={"added_tokens": TokenRange(first=128_000, count=10)})
    plain, rows = (estimate(facts, shape(lora_rank=16)) for facts in (LLAMA_8B, longer))
    assert rows.optimizer - plain.optimizer == 2 * 10 * 4096 * 12
    head = 128_256 * 4096
    assert rows.logits - plain.logits == head * (2 + 2)  # a copy of the head, and its gradient


def test_stage_3_divides_the_weights_and_holds_the_gathered_part_whole():
    memory = estimate(LLAMA_8B, shape(zero_stage=3))
    layer = (LLAMA_8B.parameters - LLAMA_8B.embedding_parameters) // 32
    gathered = max(2 * layer, LLAMA_8B.embedding_parameters)
    assert memory.weights == LLAMA_8B.parameters * 2 // 8 + gathered * 2


def test_a_second_partition_of_the_weights_is_counted():
    second = estimate(LLAMA_8B, shape(zero_stage=3, secondary_size=4)).weights
    assert second - estimate(LLAMA_8B, shape(zero_stage=3)).weights == LLAMA_8B.parameters * 2 // 4


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_a_higher_stage_never_needs_more(stage):
    assert (
        estimate(LLAMA_8B, shape(zero_stage=stage)).total
        < estimate(LLAMA_8B, shape(zero_stage=stage - 1)).total
    )


def test_adapters_need_gradients_and_optimizer_for_themselves_only():
    memory = estimate(LLAMA_8B, shape(lora_rank=16))
    adapters = LLAMA_8B.lora_parameters_per_rank * 16
    assert memory.weights == (LLAMA_8B.parameters + adapters) * 2
    assert memory.gradients == adapters * (2 + 4)
    assert memory.optimizer == adapters * 12


def test_bf16_masters_leave_the_fp32_copy_away():
    plain = [estimate(LLAMA_8B, shape(zero_stage=stage)).optimizer for stage in (2, 3)]
    bf16 = [
        estimate(LLAMA_8B, shape(zero_stage=stage, master_weights="BF16StochasticRounding")).optimizer
        for stage in (2, 3)
    ]
    assert plain == [LLAMA_8B.parameters * 12 // 8] * 2
    assert bf16 == [LLAMA_8B.parameters * 10 // 8, LLAMA_8B.parameters * 8 // 8]


def test_muon_keeps_one_moment_of_hidden_matrices():
    hidden = LLAMA_8B.parameters - LLAMA_8B.embedding_parameters
    memory = estimate(LLAMA_8B, shape(muon=True))
    assert memory.optimizer == LLAMA_8B.parameters * 12 - 4 * hidden + 12 * 4096 * 14336


def test_frozen_parameters_have_neither_gradients_nor_moments():
    frozen = LLAMA_8B.model_copy(update={"trained_parameters": 10**9})
    memory = estimate(frozen, shape())
    assert (memory.weights, memory.gradients, memory.optimizer) == (
        LLAMA_8B.parameters * 2,
        6 * 10**9,
        12 * 10**9,
    )


def test_dora_trains_the_norms_of_rows_and_keeps_results_apart():
    plain, dora = (estimate(LLAMA_8B, shape(lora_rank=16, dora=dora)) for dora in (False, True))
    outputs = 5 * 4096 + 2 * 14336
    assert dora.gradients - plain.gradients == (2 + 4) * 32 * outputs
    whole = 2 * (3 * 4096 * 14336 + 14336**2)
    assert dora.activations - plain.activations == 2048 * 32 * 2 * 2 * outputs + whole


def test_bf16_masters_are_planned_for_stage_2_or_3_also_on_one_gpu():
    training = {"masterWeights": "BF16StochasticRounding"}
    for workers, memory, stage in (
        ({"nodes": 1, "gpusPerNode": 1}, 400, 2),
        ({"nodes": 1, "gpusPerNode": 1}, 140, 3),
        ({"nodes": 1, "gpusPerNode": 8}, 80, 2),
        ({"nodes": 1, "gpusPerNode": 8}, 48, 3),
    ):
        hardware = Hardware(gpu_memory_bytes=memory * GIB)
        assert choose(LLAMA_8B, hardware, workers=workers, training=training).zero_stage == stage


def test_muon_is_planned_for_stage_0_and_where_it_does_not_fit_adamw_is_offered():
    muon = {"optimizer": {"type": "Muon"}}
    eight = {"nodes": 1, "gpusPerNode": 8}
    assert choose(SMALL, GPU80, workers=eight, training=muon).zero_stage == 0
    wanted = spec(workers=eight, training=muon)
    found = plan(wanted, LLAMA_8B, GPU80)
    assert isinstance(found, NoFit)
    message = no_fit_message(wanted, LLAMA_8B, GPU80, found)
    assert "it would fit with spec.training.optimizer.type: AdamW" in message
    assert "LoRA" not in message


def test_activations_by_hand():
    memory = estimate(SMALL, shape(max_length=100, precision="fp32"))
    layer = 100 * (4 * (8 * 576 + 4 * 1536) + 8 * 576)
    assert memory.activations == 30 * layer
    whole = estimate(SMALL, shape(max_length=100, precision="fp32", checkpointing="Full"))
    assert whole.activations == 100 * 30 * 4 * 576 + layer
    part = estimate(SMALL, shape(max_length=100, precision="fp32", checkpointing="Selective"))
    assert part.activations == 100 * 30 * 4 * (7 * 576 + 2 * 1536) + layer


def test_what_grows_with_the_square_of_the_length_depends_on_the_attention():
    def more(architecture: str, **over) -> int:
        facts = SMALL.model_copy(update={"architecture": architecture})
        at = shape(max_length=100, **over)
        return estimate(facts, at).activations - estimate(SMALL, replace(at, attention=None)).activations

    assert SMALL.architecture == "LlamaForCausalLM"
    assert more("LlamaForCausalLM", attention="SDPA") == 0
    assert more("MistralForCausalLM") == 30 * 2 * 2 * 100**2, "its windows need a mask"
    scores = 9 * 100**2
    assert more("LlamaForCausalLM", attention="Eager") == 30 * 6 * scores + 6 * scores
    assert more("LlamaForCausalLM", attention="Eager", precision="fp32") == 30 * 4 * scores + 8 * scores
    assert more("LlamaForCausalLM", attention="Eager", checkpointing="Full") == 12 * scores
    assert more("Gemma2ForCausalLM") == more("LlamaForCausalLM", attention="Eager")
    assert more("Gemma2ForCausalLM", attention="FlashAttention") == 0


@pytest.mark.parametrize(
    ("length", "checkpointing", "measured"),
    [(512, "None", 2.22), (2048, "None", 4.49), (2048, "Full", 2.97)],
)
def test_the_estimate_covers_what_was_measured_and_not_much_more(length, checkpointing, measured):
    """Peak resident GiB of forward and backward of SmolLM2-135M in fp32 on a CPU (docs/planning.md)."""
    values = {"world_size": 1, "precision": "fp32", "accelerator": "cpu"}
    memory = estimate(SMALL, shape(max_length=length, checkpointing=checkpointing, **values))
    without_optimizer = (memory.total - memory.optimizer * 1.2) / GIB
    assert measured <= without_optimizer <= measured * 1.6


def test_logits_are_those_of_a_chunk_beside_the_gradient_of_the_head():
    small = estimate(SMALL, shape(max_length=100))
    assert small.logits == 100 * 49_152 * 2 + 3 * 2**26 + 49_152 * 576 * 2
    large = estimate(LLAMA_8B, shape(max_length=65_536))
    assert large.logits == 2**30 + 3 * 2**26 + 128_256 * 4096 * (2 + 4)
    assert estimate(LLAMA_8B, shape(max_length=131_072)).logits == large.logits
    assert estimate(LLAMA_8B, shape(max_length=65_536, lora_rank=8)).logits == 2**30 + 3 * 2**26
    on_cpu = estimate(LLAMA_8B, shape(max_length=65_536, lora_rank=8, accelerator="cpu"))
    assert on_cpu.logits == 2**28 + 3 * 2**22 + 128_256 * 4096 * 4, "its head in fp32, if it has no bf16"


@pytest.mark.parametrize(
    ("update", "times"),
    [
        ({"architecture": "Gemma2ForCausalLM"}, 3),
        ({"architecture": "GraniteForCausalLM"}, 2),
        ({"architecture": "Cohere2ForCausalLM", "capped_logits": False}, 2),
        ({"architecture": "Gemma3ForCausalLM", "capped_logits": True}, 3),
    ],
    ids=str,
)
def test_logits_that_are_capped_or_scaled_exist_whole_more_than_once(update, times):
    model = SMALL.model_copy(update=update)
    whole, pieces, head = 65_536 * 49_152 * 2, 3 * 2**26, 49_152 * 576 * 2
    assert estimate(model, shape(max_length=65_536)).logits == times * whole + pieces + head
    assert estimate(model, shape(max_length=65_536, lora_rank=8)).logits == times * whole + pieces
    plain = SMALL.model_copy(update={"architecture": "Gemma3ForCausalLM", "capped_logits": False})
    assert estimate(plain, shape(max_length=65_536, lora_rank=8)).logits == 2**30 + pieces


def test_heads_of_their_own_size_their_norms_and_experts_by_hand():
    at = shape(max_length=100, precision="bf16", attention="FlashAttention")
    none = estimate(SMALL, at).activations
    wide = SMALL.model_copy(update={"head_size": 128, "key_value_heads": 3})
    assert estimate(wide, at).activations - none == 100 * 30 * 2 * 4 * (9 * 128 - 576)
    normed = wide.model_copy(update={"normalised_queries": True})
    assert (
        estimate(normed, at).activations - estimate(wide, at).activations
        == 100 * 30 * (4 + 2) * (9 + 3) * 128
    )
    experts = SMALL.model_copy(update={"experts_per_token": 4, "experts_intermediate_size": 4 * 512})
    more = 2 * (2 * 4 * 576 + 4 * (4 * 512 - 1536))
    assert estimate(experts, at).activations - none == 100 * 30 * more
    selective, of_one = replace(at, checkpointing="Selective"), 100 * more
    assert estimate(experts, selective).activations - estimate(SMALL, selective).activations == of_one


def choose(model: ModelFacts, hardware: Hardware, **parts) -> Plan:
    found = plan(spec(**parts), model, hardware)
    assert isinstance(found, Plan), found
    return found


@pytest.mark.parametrize(
    ("training", "stage"),
    [
        ({}, 2),
        ({"precision": "bf16"}, 2),
        ({"precision": "fp32"}, 0),
        ({"precision": "fp16"}, 1),
        ({"optimizer": {"type": "Muon"}}, 0),
    ],
    ids=str,
)
def test_the_stage_of_one_rank_is_the_one_that_needs_least_and_sums_gradients_in_fp32(training, stage):
    assert choose(SMALL, GPU80, workers={"nodes": 1, "gpusPerNode": 1}, training=training).zero_stage == stage


def test_one_rank_in_bf16_needs_less_at_stage_2_than_at_stages_0_and_1():
    need = [estimate(LLAMA_8B, shape(world_size=1, zero_stage=stage)).total for stage in (0, 1, 2)]
    assert need[2] < min(need[:2])


@pytest.mark.parametrize(
    ("precision", "sizes", "expected"),
    [
        ("fp16", (140, 80, 48), [1, 2, 3]),
        ("fp32", (190, 130, 80), [1, 2, 3]),
        ("bf16", (800, 80, 48), [2, 2, 3]),
    ],
)
def test_the_lowest_stage_that_fits_is_taken_but_stage_1_in_bf16_never(precision, sizes, expected):
    parts = {"workers": {"nodes": 1, "gpusPerNode": 8}, "training": {"precision": precision}}
    stages = [choose(LLAMA_8B, Hardware(gpu_memory_bytes=size * GIB), **parts).zero_stage for size in sizes]
    assert stages == expected


def test_when_no_stage_suffices_activations_are_recomputed_and_then_the_micro_batch_shrinks():
    eight = {"nodes": 1, "gpusPerNode": 8}
    found = [
        choose(
            LLAMA_8B, Hardware(gpu_memory_bytes=size * GIB), workers=eight, training={"globalBatchSize": 64}
        )
        for size in (160, 64, 32, 28)
    ]
    assert [(each.micro_batch_size, each.activation_checkpointing, each.zero_stage) for each in found] == [
        (4, "None", 2),
        (4, "Selective", 3),
        (4, "Full", 3),
        (2, "Full", 3),
    ]


ONE = {"nodes": 1, "gpusPerNode": 1}


def with_memory(size: str) -> dict:
    return {**ONE, "resources": {"limits": {"memory": size}}}


def test_offloaded_states_lie_in_the_pods_memory():
    on_gpu = shape(zero_stage=3, world_size=2)
    memory = estimate(LLAMA_8B, replace(on_gpu, offload_optimizer="CPU"))
    half = LLAMA_8B.parameters // 2
    assert (memory.gradients, memory.optimizer) == (0, 0)
    assert memory.weights == estimate(LLAMA_8B, on_gpu).weights
    assert memory.host == pytest.approx((half * (12 + 4 + 4) + 4 * GIB) * 1.08, rel=1e-6)
    both = estimate(LLAMA_8B, replace(on_gpu, offload_optimizer="CPU", offload_parameters="CPU"))
    assert both.host - memory.host == pytest.approx(half * 2 * 1.08, rel=1e-6)
    assert memory.weights - both.weights == half * 2
    assert estimate(LLAMA_8B, on_gpu).host == 0


@pytest.mark.parametrize(("precision", "size"), [("bf16", 2), ("fp16", 2), ("fp32", 4)])
def test_stage_2_sums_its_gradients_on_the_gpu_where_they_are_wider_than_weights(precision: Any, size: int):
    on_gpu = shape(zero_stage=2, world_size=2, precision=precision, offload_optimizer="CPU")
    memory = estimate(LLAMA_8B, on_gpu)
    half = LLAMA_8B.parameters // 2
    assert memory.optimizer == 0
    assert memory.gradients == (0 if precision == "fp32" else 4 * half)
    states = half * (12 + 4 + size) + 128_256 * 4096 * size
    states += 4 * half if precision == "fp32" else 0
    assert memory.host == pytest.approx((states + 4 * GIB) * 1.08, rel=1e-6)


def test_the_largest_gradient_is_one_of_what_is_trained():
    on_gpu = shape(zero_stage=1, precision="fp16", lora_rank=8)
    here, there = (estimate(LLAMA_8B, replace(on_gpu, offload_optimizer=where)) for where in ("None", "CPU"))
    trained = here.gradients * 8 // (4 * 8 + 4)  # all of the sums, and this rank's eighth again
    assert there.buffers - here.buffers == pytest.approx(2 * trained, rel=1e-6)
    assert trained < 128_256 * 4096, "adapters are smaller than the embeddings"


def test_on_a_cpu_offloading_moves_nothing():
    on_cpu = shape(zero_stage=3, accelerator="cpu")
    offloaded = replace(on_cpu, offload_optimizer="CPU", offload_parameters="CPU")
    assert estimate(SMALL, offloaded) == estimate(SMALL, on_cpu)


@pytest.mark.parametrize(
    ("gpu", "offloads"), [(160, ("None", "None")), (40, ("CPU", "None")), (16, ("CPU", "CPU"))]
)
def test_the_optimizer_and_then_the_weights_are_offloaded_when_nothing_else_fits(gpu, offloads):
    hardware = Hardware(gpu_memory_bytes=gpu * GIB)
    found = choose(LLAMA_8B, hardware, workers=with_memory("512Gi"))
    assert (found.offload_optimizer, found.offload_parameters) == offloads
    assert found.zero_stage == (3 if "CPU" in offloads else 2)
    assert ("offloadOptimizer" in found.decided) == (offloads[0] == "CPU")
    words = fits_message(spec(workers=with_memory("512Gi")), found.status())
    assert ("of the pod's memory" in words) == ("CPU" in offloads)


def test_memory_that_is_not_stated_is_not_taken_unasked_but_when_asked():
    hardware = Hardware(gpu_memory_bytes=40 * GIB)
    words = no_fit(LLAMA_8B, hardware, workers=ONE)
    assert "spec.deepspeed.offloadOptimizer: CPU and spec.workers.resources.limits.memory: " in words
    asked = choose(LLAMA_8B, hardware, workers=ONE, deepspeed={"offloadOptimizer": "CPU"})
    assert asked.offload_optimizer == "CPU"
    assert asked.decided == ("zeroStage", "microBatchSize", "activationCheckpointing")


def test_a_pod_with_too_little_memory_for_what_is_offloaded_is_said():
    words = no_fit(LLAMA_8B, Hardware(gpu_memory_bytes=40 * GIB), workers=with_memory("100Gi"))
    assert words.startswith("offloading needs about ")
    assert "optimizer on the CPU), but there are 100.0 GiB" in words
    need = words.split("limits.memory to ")[1].split()[0]
    assert choose(LLAMA_8B, Hardware(gpu_memory_bytes=40 * GIB), workers=with_memory(need))


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_what_the_user_sets_is_kept_and_not_listed_as_decided(stage):
    found = choose(
        SMALL,
        GPU80,
        workers={"nodes": 2, "gpusPerNode": 8},
        training={"globalBatchSize": 64},
        deepspeed={"zeroStage": stage, "microBatchSize": 2, "activationCheckpointing": "Full"},
    )
    assert (found.zero_stage, found.micro_batch_size, found.gradient_accumulation_steps) == (stage, 2, 2)
    assert found.activation_checkpointing == "Full"
    assert found.decided == ()


@pytest.mark.parametrize("batch", [2, 6, 16, 24, 1024])
@pytest.mark.parametrize("gpus", [0, 2])
def test_the_batch_identity_always_holds(batch, gpus):
    found = choose(
        SMALL, GPU80, workers={"nodes": 2, "gpusPerNode": gpus or 0}, training={"globalBatchSize": batch * 2}
    )
    product = found.world_size * found.micro_batch_size * found.gradient_accumulation_steps
    assert product == batch * 2
    assert found.tokens_per_step == batch * 2 * 2048


def test_a_gpu_gets_as_many_sequences_as_keep_it_busy_and_a_cpu_one():
    parts = {"training": {"globalBatchSize": 256}, "data": {"maxLength": 1024}}
    assert choose(SMALL, GPU80, workers={"gpusPerNode": 1}, **parts).micro_batch_size == 8
    assert choose(SMALL, GPU80, workers={"gpusPerNode": 0}, **parts).micro_batch_size == 1


def test_gpus_without_bf16_are_planned_as_the_pods_will_choose():
    parts = {"workers": {"nodes": 1, "gpusPerNode": 1}}
    without = Hardware(gpu_memory_bytes=16 * GIB, gpu_bf16=False)
    half = choose(SMALL, without, **parts)
    assert half == choose(SMALL, without, training={"precision": "fp16"}, **parts)
    assert half.zero_stage == 1, "stage 0 has no fp16"
    stage_0 = {"deepspeed": {"zeroStage": 0}}
    whole = choose(SMALL, without, **parts, **stage_0)
    assert whole == choose(SMALL, without, training={"precision": "fp32"}, **parts, **stage_0)
    assert (half.activation_checkpointing, whole.activation_checkpointing) == ("None", "Selective")


LONG = {
    "workers": {"nodes": 1, "gpusPerNode": 8},
    "data": {"maxLength": 131_072},
    "training": {"globalBatchSize": 8},
}
GQA_8B = LLAMA_8B.model_copy(update={"key_value_heads": 8})


def test_ranks_that_share_sequences_share_activations_and_logits_and_nothing_else():
    alone = shape(max_length=16_384, checkpointing="Full", zero_stage=3)
    shared = replace(alone, max_length=131_072, sequence_ranks=8)
    one, eighth = estimate(LLAMA_8B, alone), estimate(LLAMA_8B, shared)
    assert (one.weights, one.gradients, one.optimizer) == (eighth.weights, eighth.gradients, eighth.optimizer)
    assert one.logits == eighth.logits
    tokens, hidden, middle = 16_384, 4096, 14_336
    layer = tokens * (2 * (9 * hidden + 4 * middle) + 8 * hidden)
    assert eighth.activations == tokens * 32 * 2 * hidden + layer + tokens * 2 * 6 * hidden
    assert one.activations == tokens * 32 * 2 * hidden + layer - tokens * 2 * hidden


def test_ranks_that_share_layers_have_a_part_of_what_is_cut_and_all_of_the_rest():
    one, fourth = (estimate(LLAMA_8B, shape(zero_stage=2, tensor_ranks=n)) for n in (1, 4))
    table, norms = 128_256 * 4096, 65 * 4096  # untied
    own = table + norms + (LLAMA_8B.parameters - table - norms) // 4
    assert fourth.weights == 2 * own
    assert fourth.gradients == 4 * own // 2, "over the two groups"
    assert fourth.optimizer == 12 * own // 2
    assert fourth.logits < one.logits
    layer = 2048 * (2 * (4 * 4096 + (4 * 4096 + 4 * 14_336) // 4) + 8 * 4096)
    assert fourth.activations == 32 * layer
    tied = LLAMA_8B.model_copy(update={"tied_embeddings": True})
    assert estimate(tied, shape(tensor_ranks=8)).weights < estimate(LLAMA_8B, shape(tensor_ranks=8)).weights


@pytest.mark.parametrize(("precision", "stage"), [("bf16", 2), ("fp32", 1)])
def test_layers_are_shared_at_stage_1_or_2(precision, stage):
    training = {**LONG["training"], "precision": precision}
    parts = {
        **LONG,
        "data": {"maxLength": 4096},
        "deepspeed": {"tensorParallelSize": 8},
        "training": training,
    }
    found = choose(GQA_8B, GPU80, **parts)
    assert (found.tensor_ranks, found.zero_stage, found.status().tensor_parallel_size) == (8, stage, 8)
    assert "per 8 GPUs that share layers" in fits_message(spec(**parts), found.status())


@pytest.mark.parametrize(
    ("update", "size", "why"),
    [
        ({"key_value_heads": 2}, 4, "attention heads and 2 of keys and values"),
        ({"architecture": "GPT2LMHeadModel"}, 2, "GPT2LMHeadModel is not one whose layers ranks can share"),
    ],
)
def test_layers_that_cannot_be_shared_are_said_before_a_gpu_is_taken(update, size, why):
    parts = {
        "workers": {"nodes": 1, "gpusPerNode": 8},
        "training": {"globalBatchSize": 8},
        "deepspeed": {"tensorParallelSize": size},
    }
    assert isinstance(plan(spec(**parts), GQA_8B, GPU80), Plan)
    words = no_fit(GQA_8B.model_copy(update=update), GPU80, **parts)
    assert f"spec.deepspeed.tensorParallelSize is {size}, but " in words
    assert why in words


def test_a_context_that_is_too_long_for_a_gpu_fits_where_eight_share_it():
    words = no_fit(GQA_8B, GPU80, **LONG)
    assert "spec.deepspeed.sequenceParallelSize: " in words
    found = choose(GQA_8B, GPU80, **LONG, deepspeed={"sequenceParallelSize": 8})
    assert (found.sequence_ranks, found.micro_batch_size, found.gradient_accumulation_steps) == (8, 1, 8)
    said = fits_message(spec(**LONG), found.status())
    assert "micro-batch 1 x 8 per 8 GPUs that share sequences" in said
    assert found.status().sequence_parallel_size == 8


def test_the_example_of_a_long_context_fits_eight_gpus_of_80_gib():
    text = (Path(__file__).resolve().parents[2] / "examples" / "long-context.yaml").read_text()
    found = plan(read_sftjob(YAML(typ="safe", pure=True).load(text)).spec, GQA_8B, GPU80)
    assert isinstance(found, Plan)
    assert (found.sequence_ranks, found.tokens_per_step) == (8, 8 * 131_072)


def test_what_is_advised_is_a_size_that_fits():
    words = no_fit(GQA_8B, GPU80, **LONG)
    size = int(words.partition("spec.deepspeed.sequenceParallelSize: ")[2].split()[0])
    assert choose(GQA_8B, GPU80, **LONG, deepspeed={"sequenceParallelSize": size})


@pytest.mark.parametrize(
    ("heads", "key_value_heads", "size", "possible"),
    [
        (32, 8, 8, True),
        (32, 8, 16, True),
        (32, 1, 4, True),
        (12, None, 4, True),
        (12, 4, 3, False),
        (9, 3, 2, False),
    ],
)
def test_heads_that_cannot_be_shared_are_said_before_a_gpu_is_taken(heads, key_value_heads, size, possible):
    model = SMALL.model_copy(update={"heads": heads, "key_value_heads": key_value_heads})
    parts = {
        "workers": {"nodes": 1, "gpusPerNode": 48},
        "training": {"globalBatchSize": 48},
        "deepspeed": {"sequenceParallelSize": size},
    }
    found = plan(spec(**parts), model, GPU80)
    assert isinstance(found, Plan) == possible
    if not possible:
        words = no_fit(model, GPU80, **parts)
        assert f"spec.deepspeed.sequenceParallelSize is {size}, but LlamaForCausalLM has {heads}" in words
        assert words.endswith(" can")


def test_a_cpu_of_unknown_memory_is_assumed_to_suffice():
    found = choose(LLAMA_8B, Hardware(), workers={"nodes": 2, "gpusPerNode": 0})
    assert (found.zero_stage, found.available_bytes) == (2, None)
    assert found.status().memory.available is None


@pytest.mark.parametrize(
    ("workers", "hardware", "expected"),
    [
        ({"gpusPerNode": 8}, Hardware(), 40 * GIB),
        ({"gpusPerNode": 8}, GPU80, 80 * GIB),
        ({"gpusPerNode": 0}, Hardware(), None),
        ({"gpusPerNode": 0}, Hardware(host_memory_bytes=8 * GIB), 8 * GIB),
        ({"gpusPerNode": 0, "resources": {"requests": {"memory": "4Gi"}}}, Hardware(), 4 * GIB),
        (
            {"gpusPerNode": 0, "resources": {"requests": {"memory": "4Gi"}, "limits": {"memory": "6Gi"}}},
            Hardware(host_memory_bytes=GIB),
            6 * GIB,
        ),
        (
            {"gpusPerNode": 0, "processesPerNode": 2, "resources": {"limits": {"memory": "6Gi"}}},
            Hardware(),
            3 * GIB,
        ),
    ],
)
def test_where_the_available_memory_comes_from(workers, hardware, expected):
    assert available_bytes(spec(workers=workers), hardware) == expected


@pytest.mark.parametrize(("share", "room"), [(1.2, False), (1.3, True)])
def test_a_quarter_more_memory_than_estimated_is_room(share, room):
    cpu = {"workers": {"gpusPerNode": 0}, "deepspeed": {"zeroStage": 0}}
    need = choose(SMALL, Hardware(), **cpu).memory_bytes
    assert choose(SMALL, Hardware(host_memory_bytes=int(share * need)), **cpu).has_room == room
    assert not choose(SMALL, Hardware(), **cpu).has_room  # of unknown memory nothing is to spare


def no_fit(model: ModelFacts, hardware: Hardware, **parts) -> str:
    wanted = spec(**parts)
    found = plan(wanted, model, hardware)
    assert isinstance(found, NoFit)
    return no_fit_message(wanted, model, hardware, found)


def test_what_does_not_fit_is_said_with_every_way_out():
    words = no_fit(
        LLAMA_8B,
        Hardware(gpu_memory_bytes=24 * GIB),
        workers={"nodes": 1, "gpusPerNode": 4},
        data={"maxLength": 16384},
        deepspeed={"zeroStage": 1},
    )
    assert "but there are 24.0 GiB" in words
    assert "GiB per GPU at least (ZeRO-1, micro-batch 1 with activation checkpointing)" in words
    assert words.endswith(
        "it would fit with spec.training.method: QLoRA or "
        "spec.deepspeed.offloadOptimizer: CPU and spec.deepspeed.zeroStage left to the planner and "
        "spec.workers.resources.limits.memory: 183114Mi"
    )


def test_lora_and_the_planners_own_stage_are_offered_where_they_would_help():
    words = no_fit(
        LLAMA_8B,
        Hardware(gpu_memory_bytes=40 * GIB),
        workers={"nodes": 1, "gpusPerNode": 4},
        deepspeed={"zeroStage": 1},
    )
    assert "spec.training.method: LoRA" in words


def test_nothing_that_would_help_is_said_too():
    words = no_fit(LLAMA_8B, Hardware(gpu_memory_bytes=2 * GIB), workers={"gpusPerNode": 1})
    assert "use a GPU with more memory" in words


def test_the_sentence_about_a_plan_that_fits():
    parts = {"workers": {"nodes": 1, "gpusPerNode": 8}}
    found = choose(LLAMA_8B, GPU80, **parts)
    words = fits_message(spec(**parts), found.status())
    assert words.startswith(f"ZeRO-{found.zero_stage}, micro-batch ")
    assert words.endswith(" of 80.0 GiB per GPU")


ASSUMED = "40.0 GiB{} (assumed: no node says how much a GPU has; set the chart's operator.gpuMemory)"


def test_memory_that_is_assumed_is_called_so():
    parts = {"workers": {"nodes": 1, "gpusPerNode": 1}}
    found = choose(SMALL, Hardware(), **parts)
    assert found.status().memory.assumed
    assert fits_message(spec(**parts), found.status()).endswith(ASSUMED.format(" per GPU"))
    kept = plan(spec(**parts), SMALL, GPU80, found.status())
    assert isinstance(kept, Plan)
    assert kept.assumed, "as it was planned"
    assert f"but there are {ASSUMED.format('')}; it would fit with " in no_fit(LLAMA_8B, Hardware(), **parts)
    for known in (
        choose(SMALL, GPU80, **parts),
        choose(SMALL, Hardware(), workers={"nodes": 1, "gpusPerNode": 0}),
    ):
        assert not known.assumed
    assert found.hash == choose(SMALL, Hardware(gpu_memory_bytes=40 * GIB), **parts).hash
    assert "assumed" not in no_fit(LLAMA_8B, Hardware(gpu_memory_bytes=40 * GIB), **parts)


@pytest.mark.parametrize(
    ("deepspeed", "word"),
    [
        ({"zeroStage": 2}, "ZeRO-2"),
        ({"zeroStage": 2, "offloadOptimizer": "CPU"}, "ZeRO-2+offload"),
        ({"zeroStage": 3, "sequenceParallelSize": 4}, "ZeRO-3+SP4"),
    ],
)
def test_a_plan_has_one_word_for_its_column(deepspeed: dict[str, Any], word: str):
    found = choose(GQA_8B, Hardware(gpu_memory_bytes=800 * GIB), **LONG, deepspeed=deepspeed)
    assert found.status().display == found.display == word


def test_the_digest_speaks_of_the_choices_and_not_of_the_estimate():
    workers = {"nodes": 1, "gpusPerNode": 1}
    one = choose(SMALL, GPU80, workers=workers)
    assert one.hash == choose(SMALL, Hardware(gpu_memory_bytes=79 * GIB), workers=workers).hash
    assert one.hash != choose(SMALL, GPU80, workers=workers, deepspeed={"microBatchSize": 1}).hash


@pytest.mark.parametrize(
    ("quantity", "size"),
    [
        ("64Gi", 64 * GIB),
        ("1.5Gi", 3 * GIB // 2),
        ("500Mi", 500 * 2**20),
        ("1G", 10**9),
        ("1k", 1000),
        ("1e9", 10**9),
        ("1E3", 1000),
        ("128974848", 128974848),
        (8, 8),
        ("0.5", 0),
        ("1500m", 1),
        ("1Ei", 2**60),
        ("2E", 2 * 10**18),
        ("+1Ki", 1024),
        ("-0", 0),
        ("1e-400", 0),
        (str(2**63 - 1), 2**63 - 1),
    ],
)
def test_quantities_are_read_as_kubernetes_reads_them(quantity, size):
    assert quantity_bytes(quantity) == size


@pytest.mark.parametrize("text", ["", "Gi", "64 Gi", "64GB", "1e", "0x10", "--1", "1Ki1"])
def test_what_is_no_quantity_is_said(text):
    with pytest.raises(ValueError, match="is not a quantity"):
        quantity_bytes(text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("-1Gi", "'-1Gi' is negative"),
        (-1, "-1 is negative"),
        (2**63, "is more than Kubernetes can count"),
        ("8Ei", "is more than Kubernetes can count"),
        ("1e400", "'1e400' is more than"),
        ("1e999999999", "is not a quantity"),
        ("9" * 2_000_000, "is not a quantity"),
    ],
    ids=["negative", "negative number", "2^63", "suffix", "1e400", "decimal overflow", "two megabytes"],
)
def test_a_quantity_that_no_machine_has_is_refused_in_a_short_sentence(text, words):
    with pytest.raises(ValueError, match=words) as refused:
        quantity_bytes(text)
    assert len(str(refused.value)) < 120


def test_sizes_for_people_and_for_status():
    assert mebibytes(1) == "1Mi"
    assert quantity_bytes(mebibytes(61200 * 2**20)) == 61200 * 2**20
    assert gibibytes(int(61.2 * GIB)) == "61.2 GiB"


def test_dora_is_never_planned_with_partitioned_weights():
    lora = {"method": "LoRA", "lora": {"variant": "DoRA"}}
    tight = Hardware(gpu_memory_bytes=12 * GIB)
    workers = {"nodes": 1, "gpusPerNode": 8}
    plain = plan(spec(training={"method": "LoRA"}, workers=workers), LLAMA_8B, tight)
    assert isinstance(plain, Plan)
    assert plain.zero_stage == 3
    assert isinstance(plan(spec(training=lora, workers=workers), LLAMA_8B, tight), NoFit)
