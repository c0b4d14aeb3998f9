"""The parallel strategy: what the spec leaves open is chosen so that it fits, in a fixed order.

Order: the largest sensible micro-batch with the lowest ZeRO stage; then higher stages; then activation
checkpointing; then a smaller micro-batch. What fits nowhere is said before a GPU is taken, with what would.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Literal

from sft_trainer.config import ModelFacts
from sftjob_operator.api.status import PlanMemory, PlanStatus
from sftjob_operator.api.v1alpha1 import Spec
from sftjob_operator.planning.hardware import DEFAULT_GPU_MEMORY, Hardware, mebibytes, quantity_bytes
from sftjob_operator.planning.intent import Intent, intent
from sftjob_operator.planning.memory import Memory, Shape, estimate

# A forward pass of more tokens is no faster per token on a GPU; a CPU is busy with one sequence.
_TOKENS_PER_PASS = 8192
# What a CPU rank may grow by where its allocator keeps what is freed: 8 to 13 % measured, and 1.7 GB at a 135M model.
_ROOM = 1.25


@dataclass(frozen=True)
class Plan:
    """Every choice made."""

    zero_stage: Literal[0, 1, 2, 3]
    micro_batch_size: int
    gradient_accumulation_steps: int
    activation_checkpointing: Literal["None", "Full"]
    world_size: int
    tokens_per_step: int
    memory_bytes: int
    available_bytes: int | None
    decided: tuple[str, ...]

    @property
    def hash(self) -> str:
        """Digest of the choices (not of the estimate)."""
        choices = asdict(self)
        for name in ("memory_bytes", "available_bytes", "decided"):
            del choices[name]
        return hashlib.sha256(json.dumps(choices, sort_keys=True).encode()).hexdigest()[:8]

    @property
    def has_room(self) -> bool:
        """Whether a quarter more than the estimate is known to be there."""
        return self.available_bytes is not None and self.available_bytes >= _ROOM * self.memory_bytes

    def status(self) -> PlanStatus:
        """As it stands in status.plan."""
        available = None if self.available_bytes is None else mebibytes(self.available_bytes)
        return PlanStatus(
            zero_stage=self.zero_stage,
            micro_batch_size=self.micro_batch_size,
            gradient_accumulation_steps=self.gradient_accumulation_steps,
            activation_checkpointing=self.activation_checkpointing,
            world_size=self.world_size,
            tokens_per_step=self.tokens_per_step,
            memory=PlanMemory(per_gpu=mebibytes(self.memory_bytes), available=available),
            hash=self.hash,
            decided=list(self.decided),
        )


@dataclass(frozen=True)
class Candidate:
    """One strategy with its estimated need."""

    stage: Literal[0, 1, 2, 3]
    micro: int
    checkpointing: Literal["None", "Full"]
    memory: Memory


@dataclass(frozen=True)
class NoFit:
    """Nothing fits: the smallest need there is, and what there is."""

    smallest: Candidate
    available_bytes: int


def plan(spec: Spec, model: ModelFacts, hardware: Hardware, keep: PlanStatus | None = None) -> Plan | NoFit:
    """The strategy for `spec`, whose contradictions are already refused (SpecError otherwise).

    `keep` is the plan of an earlier attempt: the same number of ranks goes on exactly as before, whatever the
    hardware reads now, because a checkpoint can only be loaded by the strategy that wrote it.
    """
    wanted = intent(spec)
    available = available_bytes(spec, hardware)
    if keep is not None and keep.world_size == wanted.world_size:
        return _kept(spec, wanted, keep)
    smallest: Candidate | None = None
    precision = wanted.precision or expected_precision(wanted, hardware)
    for candidate in candidates(spec, wanted, model, precision, known=available is not None):
        if available is None or candidate.memory.total <= available:
            return _plan(spec, wanted, candidate, available)
        if smallest is None or candidate.memory.total < smallest.memory.total:
            smallest = candidate
    if smallest is None or available is None:
        raise AssertionError("there is always a candidate")
    return NoFit(smallest, available)


def candidates(
    spec: Spec, wanted: Intent, model: ModelFacts, precision: Literal["bf16", "fp32"], *, known: bool
) -> Iterator[Candidate]:
    """All strategies that the spec allows, the preferred ones first."""
    for micro in _micro_batches(wanted, spec.data.max_length):
        for checkpointing in _checkpointing(wanted):
            for stage in _stages(wanted, known):
                shape = Shape(
                    world_size=wanted.world_size,
                    zero_stage=stage,
                    micro_batch_size=micro,
                    max_length=spec.data.max_length,
                    checkpointing=checkpointing == "Full",
                    precision=precision,
                    accelerator=wanted.accelerator,
                    lora_rank=lora_rank(spec),
                )
                yield Candidate(stage, micro, checkpointing, estimate(model, shape))


def expected_precision(wanted: Intent, hardware: Hardware) -> Literal["bf16", "fp32"]:
    """What the pods will choose (sft_trainer.precision): bf16 on a GPU, unless one is known not to have it."""
    return "bf16" if wanted.accelerator == "gpu" and hardware.gpu_bf16 is not False else "fp32"


def lora_rank(spec: Spec) -> int | None:
    """Rank of the adapters; None = all weights are trained."""
    if spec.training.method != "LoRA":
        return None
    return 16 if spec.training.lora is None else spec.training.lora.rank


def available_bytes(spec: Spec, hardware: Hardware) -> int | None:
    """Memory of one rank; None = unknown, and then everything is assumed to fit."""
    workers = spec.workers
    if workers.gpus_per_node:
        return hardware.gpu_memory_bytes or DEFAULT_GPU_MEMORY
    stated = workers.resources.limits.get("memory", workers.resources.requests.get("memory"))
    pod = hardware.host_memory_bytes if stated is None else quantity_bytes(stated)
    return None if pod is None else pod // (workers.processes_per_node or 1)


def _stages(wanted: Intent, known: bool) -> tuple[Literal[0, 1, 2, 3], ...]:
    if wanted.zero_stage is not None:
        return (wanted.zero_stage,)  # type: ignore[return-value]
    if wanted.world_size == 1:
        return (0,)
    # Stage 1 reduces gradients once a step, 2 and 3 in every pass: the lowest that fits is the fastest.
    return (1, 2, 3) if known else (2,)


def _checkpointing(wanted: Intent) -> tuple[Literal["None", "Full"], ...]:
    return ("None", "Full") if wanted.activation_checkpointing is None else (wanted.activation_checkpointing,)


def _micro_batches(wanted: Intent, max_length: int) -> list[int]:
    """Powers of two that divide what a rank does in one step, the largest first."""
    if wanted.micro_batch_size is not None:
        return [wanted.micro_batch_size]
    per_rank = wanted.global_batch_size // wanted.world_size
    limit = max(1, _TOKENS_PER_PASS // max_length) if wanted.accelerator == "gpu" else 1
    sizes = [2**power for power in range(13) if 2**power <= limit and per_rank % 2**power == 0]
    return sorted(sizes, reverse=True)


def _plan(spec: Spec, wanted: Intent, chosen: Candidate, available: int | None) -> Plan:
    open_fields = {
        "zeroStage": wanted.zero_stage,
        "microBatchSize": wanted.micro_batch_size,
        "activationCheckpointing": wanted.activation_checkpointing,
    }
    return Plan(
        zero_stage=chosen.stage,
        micro_batch_size=chosen.micro,
        gradient_accumulation_steps=wanted.global_batch_size // (wanted.world_size * chosen.micro),
        activation_checkpointing=chosen.checkpointing,
        world_size=wanted.world_size,
        tokens_per_step=wanted.global_batch_size * spec.data.max_length,
        memory_bytes=chosen.memory.total,
        available_bytes=available,
        decided=tuple(name for name, value in open_fields.items() if value is None),
    )


def _kept(spec: Spec, wanted: Intent, keep: PlanStatus) -> Plan:
    available = keep.memory.available
    return Plan(
        zero_stage=keep.zero_stage,  # type: ignore[arg-type]
        micro_batch_size=keep.micro_batch_size,
        gradient_accumulation_steps=keep.gradient_accumulation_steps,
        activation_checkpointing="Full" if keep.activation_checkpointing == "Full" else "None",
        world_size=wanted.world_size,
        tokens_per_step=wanted.global_batch_size * spec.data.max_length,
        memory_bytes=quantity_bytes(keep.memory.per_gpu),
        available_bytes=None if available is None else quantity_bytes(available),
        decided=tuple(keep.decided),
    )
