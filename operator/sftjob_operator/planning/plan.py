"""The parallel strategy: what the spec leaves open is chosen so that it fits, in a fixed order.

Order: the largest sensible micro-batch with the lowest ZeRO stage; then higher stages; then activation
checkpointing; then a smaller micro-batch; then, all that again, with the optimizer and at last the weights in the
pod's own memory. What fits nowhere is said before a GPU is taken, with what would.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import product
from typing import Literal

from sft_trainer.config import ModelFacts, Offload, Precision, Recompute
from sftjob_operator.api.status import PlanMemory, PlanStatus
from sftjob_operator.api.v1alpha1 import Spec
from sftjob_operator.planning.hardware import DEFAULT_GPU_MEMORY, Hardware, mebibytes, quantity_bytes
from sftjob_operator.planning.heads import indivisible
from sftjob_operator.planning.intent import Intent, intent
from sftjob_operator.planning.memory import Memory, estimate
from sftjob_operator.planning.shape import Shape

# A forward pass of more tokens is no faster per token on a GPU; a CPU is busy with one sequence.
_TOKENS_PER_PASS = 8192
# The stages of a single rank. In bf16 stage 0 sums gradients in bf16 and takes more memory than 2; fp16 it has not.
_ALONE: dict[Precision, tuple[Literal[0, 1, 2, 3], ...]] = {"fp32": (0,), "bf16": (2,), "fp16": (1, 2)}
# What a CPU rank may grow by where its allocator keeps what is freed: 8 to 13 % measured, and 1.7 GB at a 135M model.
_ROOM = 1.25


@dataclass(frozen=True)
class Plan:
    """Every choice made."""

    zero_stage: Literal[0, 1, 2, 3]
    offload_optimizer: Offload
    offload_parameters: Offload
    micro_batch_size: int
    gradient_accumulation_steps: int
    activation_checkpointing: Recompute
    sequence_ranks: int
    tensor_ranks: int
    world_size: int
    tokens_per_step: int
    memory_bytes: int
    available_bytes: int | None
    assumed: bool
    """Whether `available_bytes` is assumed."""
    host_bytes: int | None
    decided: tuple[str, ...]

    @property
    def hash(self) -> str:
        """Digest of the choices (not of the estimate, nor of what is offloaded or shared where nothing is)."""
        choices = asdict(self)
        for name in ("memory_bytes", "available_bytes", "assumed", "host_bytes", "decided"):
            del choices[name]
        for name in ("offload_optimizer", "offload_parameters"):
            if choices[name] == "None":
                del choices[name]
        for name in ("sequence_ranks", "tensor_ranks"):
            if choices[name] == 1:
                del choices[name]
        return hashlib.sha256(json.dumps(choices, sort_keys=True).encode()).hexdigest()[:8]

    @property
    def has_room(self) -> bool:
        """Whether a quarter more than the estimate is known to be there."""
        return self.available_bytes is not None and self.available_bytes >= _ROOM * self.memory_bytes

    @property
    def display(self) -> str:
        """In one word: the ZeRO stage, what is offloaded, what is shared."""
        offloads = {self.offload_optimizer, self.offload_parameters} != {"None"}
        shares = f"+SP{self.sequence_ranks}" if self.sequence_ranks > 1 else ""
        return f"ZeRO-{self.zero_stage}{'+offload' if offloads else ''}{shares}"

    def status(self) -> PlanStatus:
        """As it stands in status.plan."""
        available = None if self.available_bytes is None else mebibytes(self.available_bytes)
        host = None if self.host_bytes is None else mebibytes(self.host_bytes)
        return PlanStatus(
            display=self.display,
            zero_stage=self.zero_stage,
            offload_optimizer=self.offload_optimizer,
            offload_parameters=self.offload_parameters,
            micro_batch_size=self.micro_batch_size,
            gradient_accumulation_steps=self.gradient_accumulation_steps,
            activation_checkpointing=self.activation_checkpointing,
            sequence_parallel_size=self.sequence_ranks,
            tensor_parallel_size=self.tensor_ranks,
            world_size=self.world_size,
            tokens_per_step=self.tokens_per_step,
            memory=PlanMemory(
                per_gpu=mebibytes(self.memory_bytes), available=available, assumed=self.assumed, host=host
            ),
            hash=self.hash,
            decided=list(self.decided),
        )


@dataclass(frozen=True)
class Candidate:
    """One strategy with its estimated need."""

    stage: Literal[0, 1, 2, 3]
    micro: int
    checkpointing: Recompute
    offload_optimizer: Offload
    offload_parameters: Offload
    memory: Memory


@dataclass(frozen=True)
class NoFit:
    """Nothing fits: the smallest need there is, and what there is, of the GPU's memory or of the pod's own."""

    smallest: Candidate
    available_bytes: int
    host_bytes: int | None = None
    """Set where the smallest would fit the GPU, but not the pod."""
    assumed: bool = False
    """Whether `available_bytes` is assumed."""
    indivisible: str | None = None
    """Set where no memory would help: why the model's sequences or layers cannot be shared so."""


def plan(
    spec: Spec,
    model: ModelFacts,
    hardware: Hardware,
    keep: PlanStatus | None = None,
    *,
    resumes: bool = False,
) -> Plan | NoFit:
    """The strategy for `spec`, whose contradictions are already refused (SpecError otherwise).

    `keep` is the plan of an earlier attempt: the same number of ranks goes on exactly as before, whatever the
    hardware reads now. Where another number `resumes` from its checkpoint, ZeRO stages 1 to 3 can follow one
    another (sft_trainer.checkpoint.reshard), and 0 only itself.
    """
    wanted = intent(spec)
    available, host = available_bytes(spec, hardware), host_bytes(spec, hardware)
    if keep is not None and keep.world_size == wanted.world_size:
        return _kept(spec, wanted, keep)
    if (why := indivisible(model, wanted.sequence_ranks, wanted.tensor_ranks)) is not None:
        first = next(candidates(spec, wanted, model, "bf16", known=False, host_known=False))
        return NoFit(first, available or 0, indivisible=why)
    assumed = is_assumed(spec, hardware)
    smallest: Candidate | None = None
    precision = wanted.precision or expected_precision(wanted, hardware)
    crowded: Candidate | None = None  # fits the GPU, but not the pod
    for candidate in candidates(
        spec,
        wanted,
        model,
        precision,
        known=available is not None,
        host_known=host is not None,
        resumed=keep if resumes else None,
    ):
        if available is None or candidate.memory.total <= available:
            if host is None or candidate.memory.host <= host:
                return _plan(spec, wanted, candidate, available, assumed)
            if crowded is None or candidate.memory.host < crowded.memory.host:
                crowded = candidate
        if smallest is None or candidate.memory.total < smallest.memory.total:
            smallest = candidate
    if smallest is None or available is None:
        raise AssertionError("there is always a candidate")
    return NoFit(smallest, available, assumed=assumed) if crowded is None else NoFit(crowded, available, host)


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
    """What the pods will choose (sft_trainer.precision): bf16 on a GPU, unless one is known not to have it."""
    is_whole = wanted.zero_stage == 0 or wanted.stages == (0,)
    if wanted.accelerator == "cpu" or (hardware.gpu_bf16 is False and is_whole):
        return "fp32"
    return "fp16" if hardware.gpu_bf16 is False else "bf16"


def lora_rank(spec: Spec) -> int | None:
    """Rank of the adapters; None = all weights are trained."""
    if spec.training.method == "Full":
        return None
    return 16 if spec.training.lora is None else spec.training.lora.rank


def available_bytes(spec: Spec, hardware: Hardware) -> int | None:
    """Memory of one rank; None = unknown, and then everything is assumed to fit."""
    workers = spec.workers
    if workers.gpus_per_node:
        return hardware.gpu_memory_bytes or DEFAULT_GPU_MEMORY
    pod = _pod_bytes(spec, hardware)
    return None if pod is None else pod // (workers.processes_per_node or 1)


def is_assumed(spec: Spec, hardware: Hardware) -> bool:
    """Whether `available_bytes` is a GPU's memory that nothing tells of."""
    return spec.workers.gpus_per_node > 0 and not hardware.gpu_memory_bytes


def host_bytes(spec: Spec, hardware: Hardware) -> int | None:
    """Memory of the pod for each of its GPUs, where that is known; None otherwise, and on CPUs."""
    pod, gpus = _pod_bytes(spec, hardware), spec.workers.gpus_per_node
    return None if pod is None or not gpus else pod // gpus


def _pod_bytes(spec: Spec, hardware: Hardware) -> int | None:
    """What the spec states, else what the machine has."""
    resources = spec.workers.resources
    stated = resources.limits.get("memory", resources.requests.get("memory"))
    return hardware.host_memory_bytes if stated is None else quantity_bytes(stated)


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
    if offloads:  # stage 2 accumulates gradients on the CPU in the model's type, 1 keeps them on the GPU
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


def _plan(spec: Spec, wanted: Intent, chosen: Candidate, available: int | None, assumed: bool) -> Plan:
    open_fields: dict[str, object] = {
        "zeroStage": wanted.zero_stage,
        "microBatchSize": wanted.micro_batch_size,
        "activationCheckpointing": wanted.activation_checkpointing,
    }
    if chosen.offload_optimizer == "CPU":
        open_fields["offloadOptimizer"] = wanted.offload_optimizer
    if chosen.offload_parameters == "CPU":
        open_fields["offloadParameters"] = wanted.offload_parameters
    return Plan(
        zero_stage=chosen.stage,
        micro_batch_size=chosen.micro,
        gradient_accumulation_steps=wanted.global_batch_size // (wanted.replicas * chosen.micro),
        activation_checkpointing=chosen.checkpointing,
        offload_optimizer=chosen.offload_optimizer,
        offload_parameters=chosen.offload_parameters,
        sequence_ranks=wanted.sequence_ranks,
        tensor_ranks=wanted.tensor_ranks,
        world_size=wanted.world_size,
        tokens_per_step=wanted.global_batch_size * spec.data.max_length,
        memory_bytes=chosen.memory.total,
        available_bytes=available,
        assumed=assumed,
        host_bytes=chosen.memory.host or None,
        decided=tuple(name for name, value in open_fields.items() if value is None),
    )


def _kept(spec: Spec, wanted: Intent, keep: PlanStatus) -> Plan:
    available, host = keep.memory.available, keep.memory.host
    return Plan(
        zero_stage=keep.zero_stage,  # type: ignore[arg-type]
        micro_batch_size=keep.micro_batch_size,
        gradient_accumulation_steps=keep.gradient_accumulation_steps,
        activation_checkpointing=keep.activation_checkpointing,  # type: ignore[arg-type]
        offload_optimizer="CPU" if keep.offload_optimizer == "CPU" else "None",
        offload_parameters="CPU" if keep.offload_parameters == "CPU" else "None",
        sequence_ranks=wanted.sequence_ranks,
        tensor_ranks=wanted.tensor_ranks,
        world_size=wanted.world_size,
        tokens_per_step=wanted.global_batch_size * spec.data.max_length,
        memory_bytes=quantity_bytes(keep.memory.per_gpu),
        available_bytes=None if available is None else quantity_bytes(available),
        assumed=keep.memory.assumed,
        host_bytes=None if host is None else quantity_bytes(host),
        decided=tuple(keep.decided),
    )
