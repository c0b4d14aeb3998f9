"""Whatever is asked for and whatever there is: a plan keeps what was fixed, fits, and could be asked for."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from sft_trainer.config import ModelFacts
from sftjob_operator.api.v1alpha1 import Spec
from sftjob_operator.planning.batch import SpecError
from sftjob_operator.planning.candidates import expected_precision
from sftjob_operator.planning.combinations import refuse_what_cannot_work_together
from sftjob_operator.planning.hardware import Hardware
from sftjob_operator.planning.intent import intent
from sftjob_operator.planning.plan import NoFit, Plan, plan
from sftjob_operator.policy.accept import read_sftjob
from worlds import FACTS, GIB, sftjob

SMALL = ModelFacts.model_validate(FACTS["model"])
LARGE = SMALL.model_copy(
    update={
        "parameters": 8_030_261_248,
        "embedding_parameters": 1_050_673_152,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "layers": 32,
    }
)


def optional(**choices: Any) -> st.SearchStrategy[dict[str, Any]]:
    """Any of these fields, set to any of their values, or not at all."""
    return st.fixed_dictionaries({}, optional={name: st.sampled_from(each) for name, each in choices.items()})


WORKERS = st.builds(
    lambda nodes, gpus, memory: {
        "nodes": nodes,
        "gpusPerNode": gpus,
        **({"resources": {"limits": {"memory": memory}}} if memory else {}),
    },
    st.sampled_from([1, 2]),
    st.sampled_from([0, 1, 4]),
    st.sampled_from([None, "16Gi", "2Ti"]),
)
OPTIMIZER = [{"type": "AdamW"}, {"type": "Muon"}]
LORA = optional(variant=["LoRA", "RSLoRA", "DoRA"], dropout=[0.0, 0.1])
TRAINING = st.one_of(
    optional(
        precision=["bf16", "fp16", "fp32"],
        masterWeights=["FP32", "BF16", "BF16StochasticRounding"],
        optimizer=OPTIMIZER,
    ),
    st.builds(
        lambda lora, more: {"method": "LoRA", "lora": lora, **more},
        LORA,
        optional(precision=["bf16", "fp16", "fp32"], masterWeights=["BF16StochasticRounding"]),
    ),
)
DEEPSPEED = optional(
    zeroStage=[0, 1, 2, 3],
    offloadOptimizer=["None", "CPU"],
    offloadParameters=["None", "CPU"],
    microBatchSize=[1, 2],
    activationCheckpointing=["None", "Selective", "Full"],
    config=[{"bf16": {"enabled": True}}, {"zero_optimization": {"stage": 3, "zero_hpz_partition_size": 2}}],
)
HARDWARE = st.builds(
    Hardware,
    gpu_memory_bytes=st.sampled_from([None, 16 * GIB, 80 * GIB, 10_000 * GIB]),
    gpu_bf16=st.sampled_from([None, False, True]),
)


def accepted(spec: Spec) -> bool:
    try:
        refuse_what_cannot_work_together(spec, intent(spec))
    except SpecError:
        return False
    return True


@settings(max_examples=300, deadline=None)
@given(WORKERS, TRAINING, DEEPSPEED, HARDWARE, st.sampled_from([SMALL, LARGE]))
def test_a_plan_keeps_what_was_fixed_and_every_choice_of_its_own_is_a_legal_one(
    workers: dict[str, Any],
    training: dict[str, Any],
    deepspeed: dict[str, Any],
    hardware: Hardware,
    model: ModelFacts,
) -> None:
    training = {"globalBatchSize": 64, **training}
    manifest = sftjob(workers=workers, training=training, deepspeed=deepspeed)
    spec = read_sftjob(manifest).spec
    if not accepted(spec):
        return
    found = plan(spec, model, hardware)
    if isinstance(found, NoFit):
        chosen = {
            "zeroStage": found.smallest.stage,
            "microBatchSize": found.smallest.micro,
            "offloadOptimizer": found.smallest.offload_optimizer,
            "offloadParameters": found.smallest.offload_parameters,
            "activationCheckpointing": found.smallest.checkpointing,
        }
    else:
        chosen = {
            "zeroStage": found.zero_stage,
            "microBatchSize": found.micro_batch_size,
            "offloadOptimizer": found.offload_optimizer,
            "offloadParameters": found.offload_parameters,
            "activationCheckpointing": found.activation_checkpointing,
        }
    fixed = {name: value for name, value in deepspeed.items() if name != "config"}
    if "zero_optimization" in deepspeed.get("config", {}):
        fixed["zeroStage"] = 3
    assert {name: chosen[name] for name in fixed} == fixed
    asked = sftjob(
        workers=workers,
        training={"precision": expected_precision(intent(spec), hardware), **training},
        deepspeed={**deepspeed, **chosen},
    )
    refuse_what_cannot_work_together(read_sftjob(asked).spec, intent(read_sftjob(asked).spec))
    if isinstance(found, Plan):
        ranks = workers["nodes"] * (workers["gpusPerNode"] or 1)
        assert ranks * found.micro_batch_size * found.gradient_accumulation_steps == 64
        assert found.available_bytes is None or found.memory_bytes <= found.available_bytes
        assert not set(found.decided) & set(fixed)
