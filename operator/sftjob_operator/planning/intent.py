"""What a spec asks for once its raw DeepSpeed configuration has been read: one value per question, or None.

A raw key fills the typed field that is unset; `"auto"` counts as unset. What contradicts a typed field, or
what this trainer cannot honour, is refused by name: accepted and ignored would be worse.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from sft_trainer.config import Offload, Precision, Recompute
from sftjob_operator.api.v1alpha1 import Spec
from sftjob_operator.planning.batch import SpecError, batch_sizes
from sftjob_operator.planning.rawkeys import (
    QUANTIZED,
    RAW,
    handed_on,
    refuse_what_would_be_ignored,
    section_of,
)


@dataclass(frozen=True)
class Intent:
    """The decided part of the spec. None = the planner decides."""

    nodes: int
    processes_per_node: int
    sequence_ranks: int
    tensor_ranks: int
    accelerator: Literal["gpu", "cpu"]
    global_batch_size: int
    micro_batch_size: int | None
    zero_stage: int | None
    offload_optimizer: Offload | None
    offload_parameters: Offload | None
    stages: tuple[int, ...]
    """The ZeRO stages at which what is trained, and how, works (combinations)."""
    may_offload: bool
    secondary_size: int
    """Ranks that hold all weights between them beside the partition over all ranks (hpZ); 1 = none do."""
    quantizes: bool
    activation_checkpointing: Recompute | None
    precision: Precision | None
    max_grad_norm: float
    raw: Mapping[str, Any]
    """The rest of spec.deepspeed.config, to be merged by the trainer."""

    @property
    def world_size(self) -> int:
        """Number of ranks."""
        return self.nodes * self.processes_per_node

    @property
    def replicas(self) -> int:
        """Number of ranks, or of groups that share sequences or layers, with batches of their own."""
        return self.world_size // (self.sequence_ranks * self.tensor_ranks)


def intent(spec: Spec) -> Intent:
    """Read a spec; SpecError with reason and sentence where it contradicts itself."""
    refuse_what_would_be_ignored(spec.deepspeed.config or {})
    raw = _without_auto(spec.deepspeed.config or {})
    workers = spec.workers
    processes = workers.gpus_per_node or workers.processes_per_node or 1
    stage = _zero_stage(spec, raw)
    precision = _precision(spec, raw)
    norm = _max_grad_norm(spec, raw)
    sizes = batch_sizes(spec, raw, workers.nodes * processes)
    return Intent(
        nodes=workers.nodes,
        processes_per_node=processes,
        sequence_ranks=spec.deepspeed.sequence_parallel_size,
        tensor_ranks=spec.deepspeed.tensor_parallel_size,
        accelerator="gpu" if workers.gpus_per_node else "cpu",
        global_batch_size=sizes.global_size,
        micro_batch_size=sizes.micro_size,
        zero_stage=stage,
        offload_optimizer=_offload(
            raw, "offload_optimizer", "offloadOptimizer", spec.deepspeed.offload_optimizer
        ),
        offload_parameters=_offload(
            raw, "offload_param", "offloadParameters", spec.deepspeed.offload_parameters
        ),
        stages=_stages(spec),
        secondary_size=_secondary_size(raw),
        quantizes=any(section_of(raw, "zero_optimization").get(key) for key in QUANTIZED),
        may_offload=_may_offload(spec),
        activation_checkpointing=spec.deepspeed.activation_checkpointing,
        precision=precision,
        max_grad_norm=norm,
        raw=handed_on(raw),
    )


def _zero_stage(spec: Spec, raw: Mapping[str, Any]) -> int | None:
    typed, path = spec.deepspeed.zero_stage, f"{RAW}.zero_optimization.stage"
    value = section_of(raw, "zero_optimization").get("stage")
    if value is None:
        return typed
    if not _is_integer(value) or not 0 <= value <= 3:
        raise SpecError("DeepSpeedConfigInvalid", f"{path} is {value!r}, but must be 0, 1, 2 or 3")
    if typed is not None and typed != value:
        raise _conflict(path, value, "spec.deepspeed.zeroStage", typed)
    return int(value)


def _stages(spec: Spec) -> tuple[int, ...]:
    if spec.training.optimizer.type == "Muon":
        return (0,)
    needs_whole = is_dora(spec) or trains_rows(spec) or spec.training.method == "QLoRA"
    shares = spec.deepspeed.tensor_parallel_size > 1
    lowest = 2 if spec.training.master_weights != "FP32" else int(shares)
    return tuple(range(lowest, 3 if needs_whole or shares else 4))


def _may_offload(spec: Spec) -> bool:
    is_plain = spec.training.master_weights == "FP32" and spec.training.optimizer.type != "Muon"
    return is_plain and spec.deepspeed.tensor_parallel_size == 1


def is_dora(spec: Spec) -> bool:
    """Whether norms of whole weights are taken."""
    return spec.training.lora is not None and spec.training.lora.variant == "DoRA"


def trains_rows(spec: Spec) -> bool:
    """Whether rows of the embeddings are trained beside adapters."""
    return bool(spec.model.add_tokens) and spec.training.method != "Full"


def _secondary_size(raw: Mapping[str, Any]) -> int:
    size = section_of(raw, "zero_optimization").get("zero_hpz_partition_size", 1)
    if not _is_integer(size) or size < 1:
        raise SpecError(
            "DeepSpeedConfigInvalid",
            f"{RAW}.zero_optimization.zero_hpz_partition_size is {size!r}, but must be a whole number above 0",
        )
    return int(size)


def _offload(raw: Mapping[str, Any], name: str, alias: str, typed: Offload | None) -> Offload | None:
    section, path = section_of(raw, f"zero_optimization.{name}"), f"{RAW}.zero_optimization.{name}.device"
    if not section:
        return typed
    device = section.get("device")
    if device == "nvme":
        raise SpecError(
            "DeepSpeedConfigUnsupported",
            f"{path}: offloading to NVMe is not supported, DeepSpeed's checkpoints of it cannot be continued exactly; "
            f"write cpu, or set spec.deepspeed.{alias}: CPU",
        )
    if device not in ("cpu", "none"):
        raise SpecError("DeepSpeedConfigInvalid", f"{path} is {device!r}, but must be cpu or none")
    wanted: Offload = "CPU" if device == "cpu" else "None"
    if typed is not None and typed != wanted:
        raise _conflict(path, device, f"spec.deepspeed.{alias}", typed)
    return wanted


def _precision(spec: Spec, raw: Mapping[str, Any]) -> Precision | None:
    """A switched-on format is wanted; bf16 switched off without a word about fp16 means fp32."""
    typed = spec.training.precision
    bf16, fp16 = _enabled(raw, "bf16"), _enabled(raw, "fp16")
    if bf16 and fp16:
        raise _conflict(f"{RAW}.bf16.enabled", "true", f"{RAW}.fp16.enabled", "true")
    wanted, name = typed, ""
    if typed is None and spec.training.master_weights != "FP32" and not fp16 and bf16 is None:
        typed = wanted = "bf16"
    if fp16:
        wanted, name = "fp16", "fp16"
    elif bf16 is not None and not (bf16 is False and typed == "fp16"):
        wanted, name = "bf16" if bf16 else "fp32", "bf16"
    elif fp16 is False and typed == "fp16":
        wanted, name = None, "fp16"
    if typed is not None and typed != wanted:
        stated = str(section_of(raw, name)["enabled"]).lower()
        raise _conflict(f"{RAW}.{name}.enabled", stated, "spec.training.precision", typed)
    if wanted in ("bf16", "fp32") and fp16 is None and section_of(raw, "fp16"):
        raise SpecError(
            "DeepSpeedConfigUnsupported",
            f"{RAW}.fp16: remove it, or set spec.training.precision: fp16; the precision is {wanted}",
        )
    return wanted


def _max_grad_norm(spec: Spec, raw: Mapping[str, Any]) -> float:
    typed, path, value = spec.training.max_grad_norm, f"{RAW}.gradient_clipping", raw.get("gradient_clipping")
    if value is None:
        return typed
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1e6:
        raise SpecError("DeepSpeedConfigInvalid", f"{path} is {value!r}, but must be a number above 0")
    if "max_grad_norm" in spec.training.model_fields_set and typed != value:
        raise _conflict(path, value, "spec.training.maxGradNorm", typed)
    return float(value)


def _without_auto(raw: Mapping[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in raw.items() if value != "auto" and value is not None}
    return {key: _without_auto(value) if isinstance(value, Mapping) else value for key, value in kept.items()}


def _enabled(raw: Mapping[str, Any], name: str) -> bool | None:
    value = section_of(raw, name).get("enabled")
    if value is not None and not isinstance(value, bool):
        raise SpecError(
            "DeepSpeedConfigInvalid", f"{RAW}.{name}.enabled is {value!r}, but must be true or false"
        )
    return value


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _conflict(raw_path: str, raw: object, typed_path: str, typed: object) -> SpecError:
    return SpecError(
        "DeepSpeedConfigConflict",
        f"{raw_path} is {raw}, but {typed_path} is {typed}: remove one of them, or make them equal",
    )
