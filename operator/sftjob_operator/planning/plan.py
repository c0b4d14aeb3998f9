"""The parallel strategy: what the spec leaves open is chosen so that it fits: the first of the candidates that does.

What fits nowhere is said before a GPU is taken, with what would.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Literal

from sft_trainer.config import ModelFacts, Offload, Recompute
from sftjob_operator.api.status import PlanMemory, PlanStatus
from sftjob_operator.api.v1alpha1 import Spec
from sftjob_operator.planning.candidates import Candidate, candidates, expected_precision
from sftjob_operator.planning.hardware import DEFAULT_GPU_MEMORY, Hardware, mebibytes, quantity_bytes
from sftjob_operator.planning.heads import indivisible
from sftjob_operator.planning.intent import Intent, intent

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
    crowded: Candidate | None = None  # fits the GPU, but not the pod
    for candidate in candidates(
        spec,
        wanted,
        model,
        expected_precision(wanted, hardware),
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
