"""The strategies that a spec allows, the preferred ones first.

Order: the largest sensible micro-batch with the lowest ZeRO stage; then higher stages; then activation
checkpointing; then a smaller micro-batch; then, all that again, with the optimizer and at last the weights in the
pod's own memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Literal

from sft_trainer.config import ModelFacts, Offload, Precision, Recompute
from sftjob_operator.api.status import PlanStatus
from sftjob_operator.api.v1alpha1 import Spec
from sftjob_operator.planning.hardware import Hardware
from sftjob_operator.planning.intent import Intent
from sftjob_operator.planning.memory import Memory, estimate
from sftjob_operator.planning.shape import Shape

# A forward pass of more tokens is no faster per token on a GPU; a CPU is busy with one sequence.
_TOKENS_PER_PASS = 8192
# The stages of a single rank. In bf16 stage 0 sums gradients in bf16 and takes more memory than 2; fp16 it has not.
_ALONE: dict[Precision, tuple[Literal[0, 1, 2, 3], ...]] = {"fp32": (0,), "bf16": (2,), "fp16": (1, 2)}


@dataclass(frozen=True)
class Candidate:
    """One strategy with its estimated need."""

    stage: Literal[0, 1, 2, 3]
    micro: int
    checkpointing: Recompute
    offload_optimizer: Offload
    offload_parameters: Offload
    memory: Memory


def candidates(
    spec: Spec,
    wanted: Intent,
    model: ModelFacts,
    precision: Precision,
    *,
    known: bool,
    host_known: bool,
    resumed: PlanStatus | None = None,
) -> Iterator[Candidate]:
    """All strategies that the spec allows, and the checkpoint of the plan `resumed`, the preferred ones first."""
    for (optimizer, parameters), micro, checkpointing in product(
        _offloads(wanted, host_known), _micro_batches(wanted, spec.data.max_length), _checkpointing(wanted)
    ):
        offloads = "CPU" in (optimizer, parameters)
        for stage in _stages(wanted, precision, known, offloads, resumed):
            shape = Shape(
                world_size=wanted.world_size,
                zero_stage=stage,
                micro_batch_size=micro,
                max_length=spec.data.max_length,
                checkpointing=checkpointing,
                precision=precision,
                accelerator=wanted.accelerator,
                lora_rank=lora_rank(spec),
                secondary_size=wanted.secondary_size,
                dora=spec.training.lora is not None and spec.training.lora.variant == "DoRA",
                lora_dropout=spec.training.lora is not None and spec.training.lora.dropout > 0,
                muon=spec.training.optimizer.type == "Muon",
                master_weights=spec.training.master_weights,
                quantised=spec.training.method == "QLoRA",
                offload_optimizer=optimizer,
                offload_parameters=parameters,
                sequence_ranks=wanted.sequence_ranks,
                tensor_ranks=wanted.tensor_ranks,
                attention=spec.model.attention,
            )
            yield Candidate(stage, micro, checkpointing, optimizer, parameters, estimate(model, shape))


def expected_precision(wanted: Intent, hardware: Hardware) -> Precision:
    """What is asked for, or the pods will choose (sft_trainer.precision): bf16 on a GPU, unless one is known not to
    have it.
    """
    if wanted.precision is not None:
        return wanted.precision
    is_whole = wanted.zero_stage == 0 or wanted.stages == (0,)
    if wanted.accelerator == "cpu" or (hardware.gpu_bf16 is False and is_whole):
        return "fp32"
    return "fp16" if hardware.gpu_bf16 is False else "bf16"


def lora_rank(spec: Spec) -> int | None:
    """Rank of the adapters; None = all weights are trained."""
    if spec.training.method == "Full":
        return None
    return 16 if spec.training.lora is None else spec.training.lora.rank


def _offloads(wanted: Intent, host_known: bool) -> list[tuple[Offload, Offload]]:
    """Where optimizer and parameters lie. Of itself only where the pod is known to have memory for them."""
    free = host_known and wanted.zero_stage in (None, 3) and 3 in wanted.stages and wanted.may_offload
    optimizers: tuple[Offload, ...] = ("None", "CPU") if free else ("None",)
    parameters: tuple[Offload, ...] = optimizers
    if wanted.offload_optimizer is not None:
        optimizers = (wanted.offload_optimizer,)
    if wanted.offload_parameters is not None:
        parameters = (wanted.offload_parameters,)
    pairs = [(one, other) for one in optimizers for other in parameters]
    return [pair for pair in pairs if pair != ("None", "CPU") or wanted.offload_parameters == "CPU"]


def _stages(
    wanted: Intent, precision: Precision, known: bool, offloads: bool, resumed: PlanStatus | None
) -> tuple[Literal[0, 1, 2, 3], ...]:
    if wanted.zero_stage is not None:
        return (wanted.zero_stage,)  # type: ignore[return-value]
    if resumed is not None and resumed.zero_stage == 0:
        return () if offloads else (0,)
    if offloads and not wanted.may_offload:
        return ()
    if offloads:
        # All gradients leave the GPU at stage 3 only; where that is refused adapters are trained, which have few.
        return (3,) if 3 in wanted.stages else (1,)
    # Stage 1 reduces gradients once a step, 2 and 3 in every pass: the lowest that fits is the fastest. In bf16 it is
    # DeepSpeed's BF16_Optimizer, which takes more memory than stage 2 and overlaps nothing.
    order: tuple[Literal[0, 1, 2, 3], ...] = (2,)
    if known:
        order = (2, 3) if precision == "bf16" else (1, 2, 3)
    if wanted.world_size == 1 and resumed is None:  # nothing to partition
        order = _ALONE[precision]
        if wanted.stages[0] > 1:  # bf16 master weights, of which stage 3 keeps one copy less
            order = (2, 3)
    return tuple(stage for stage in order if stage in wanted.stages) or (0,)  # Muon


def _checkpointing(wanted: Intent) -> tuple[Recompute, ...]:
    if wanted.activation_checkpointing is not None:
        return (wanted.activation_checkpointing,)
    return ("None", "Full") if wanted.tensor_ranks > 1 else ("None", "Selective", "Full")


def _micro_batches(wanted: Intent, max_length: int) -> list[int]:
    """Powers of two that divide what a rank does in one step, the largest first."""
    if wanted.micro_batch_size is not None:
        return [wanted.micro_batch_size]
    share = wanted.global_batch_size // wanted.replicas
    limit = 1
    if wanted.accelerator == "gpu":
        limit = max(1, _TOKENS_PER_PASS * wanted.sequence_ranks // max_length)
    sizes = [2**power for power in range(13) if 2**power <= limit and share % 2**power == 0]
    return sorted(sizes, reverse=True)
