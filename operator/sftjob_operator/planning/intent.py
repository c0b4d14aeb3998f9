"""What a spec asks for once its raw DeepSpeed configuration has been read: one value per question, or None.

A raw key fills the typed field that is unset; `"auto"` counts as unset. What contradicts a typed field, or
what this trainer cannot honour, is refused by name: accepted and ignored would be worse.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from sftjob_operator.api.v1alpha1 import Spec
from sftjob_operator.planning.batch import SpecError, batch_sizes

RAW = "spec.deepspeed.config"

# Sections and keys that would be ignored, or break what the trainer promises; with the way to say it instead.
_REFUSED = {
    "optimizer": "set spec.training.optimizer and spec.training.learningRate instead",
    "scheduler": "set spec.training.scheduler instead",
    "activation_checkpointing": "set spec.deepspeed.activationCheckpointing instead",
    "amp": "set spec.training.precision instead",
    "torch_autocast": "set spec.training.precision instead",
    "autotuning": "the operator plans; see status.plan",
    "elasticity": "the number of ranks is spec.workers.nodes times gpusPerNode",
    "pipeline": "pipeline parallelism is not supported by this version",
    "tensor_parallel": "tensor parallelism is not supported by this version",
    "sequence_parallel_size": "sequence parallelism is not supported by this version",
    "sparse_attention": "sparse attention is not supported by this version",
    "hybrid_engine": "it is for RLHF, not for fine-tuning",
    "compression_training": "compression is not supported by this version",
    "data_efficiency": "it reorders the data, and resuming would not be exact",
    "curriculum_learning": "it reorders the data, and resuming would not be exact",
    "checkpoint": "checkpoints are ours; set spec.checkpoint instead",
    "prescale_gradients": "it would change the gradient's scale, which is exact as it is",
    "gradient_predivide_factor": "it would change the gradient's scale, which is exact as it is",
}
_REFUSED_ZERO = {
    "offload_optimizer": "offloading is not supported by this version",
    "offload_param": "offloading is not supported by this version",
    "cpu_offload": "offloading is not supported by this version",
}


@dataclass(frozen=True)
class Intent:
    """The decided part of the spec. None = the planner decides."""

    nodes: int
    processes_per_node: int
    accelerator: Literal["gpu", "cpu"]
    global_batch_size: int
    micro_batch_size: int | None
    zero_stage: int | None
    activation_checkpointing: Literal["None", "Full"] | None
    precision: Literal["bf16", "fp32"] | None
    max_grad_norm: float
    raw: Mapping[str, Any]
    """The rest of spec.deepspeed.config, to be merged by the trainer."""

    @property
    def world_size(self) -> int:
        """Number of ranks."""
        return self.nodes * self.processes_per_node


def intent(spec: Spec) -> Intent:
    """Read a spec; SpecError with reason and sentence where it contradicts itself."""
    raw = _without_auto(spec.deepspeed.config or {})
    _refuse_unsupported(raw)
    workers = spec.workers
    processes = workers.gpus_per_node or workers.processes_per_node or 1
    stage = _zero_stage(spec, raw)
    precision = _precision(spec, raw)
    norm = _max_grad_norm(spec, raw)
    sizes = batch_sizes(spec, raw, workers.nodes * processes)
    return Intent(
        nodes=workers.nodes,
        processes_per_node=processes,
        accelerator="gpu" if workers.gpus_per_node else "cpu",
        global_batch_size=sizes.global_size,
        micro_batch_size=sizes.micro_size,
        zero_stage=stage,
        activation_checkpointing=spec.deepspeed.activation_checkpointing,
        precision=precision,
        max_grad_norm=norm,
        raw=_remaining(raw),
    )


def _zero_stage(spec: Spec, raw: Mapping[str, Any]) -> int | None:
    typed, path = spec.deepspeed.zero_stage, f"{RAW}.zero_optimization.stage"
    value = _section(raw, "zero_optimization").get("stage")
    if value is None:
        return typed
    if not _is_integer(value) or not 0 <= value <= 3:
        raise SpecError("DeepSpeedConfigInvalid", f"{path} is {value!r}, but must be 0, 1, 2 or 3")
    if typed is not None and typed != value:
        raise _conflict(path, value, "spec.deepspeed.zeroStage", typed)
    return int(value)


def _precision(spec: Spec, raw: Mapping[str, Any]) -> Literal["bf16", "fp32"] | None:
    typed = spec.training.precision
    enabled = {name: _enabled(raw, name) for name in ("bf16", "fp16")}
    if enabled["fp16"]:
        path = f"{RAW}.fp16.enabled"
        if typed is not None:
            raise _conflict(path, "true", "spec.training.precision", typed)
        raise SpecError(
            "DeepSpeedConfigUnsupported",
            f"{path}: fp16 is not supported by this version; remove it and set spec.training.precision to "
            "bf16 or fp32, or leave it to the hardware",
        )
    if enabled["bf16"] is None:
        return typed
    wanted: Literal["bf16", "fp32"] = "bf16" if enabled["bf16"] else "fp32"
    if typed is not None and typed != wanted:
        raise _conflict(f"{RAW}.bf16.enabled", str(enabled["bf16"]).lower(), "spec.training.precision", typed)
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


def _refuse_unsupported(raw: Mapping[str, Any]) -> None:
    zero = _section(raw, "zero_optimization")
    for section, refused, path in ((raw, _REFUSED, RAW), (zero, _REFUSED_ZERO, f"{RAW}.zero_optimization")):
        for key, advice in refused.items():
            if key in section and not _is_off(section[key]):
                raise SpecError("DeepSpeedConfigUnsupported", f"{path}.{key}: remove it; {advice}")


def _is_off(value: Any) -> bool:
    """A section that says it is switched off changes nothing."""
    if isinstance(value, Mapping):
        return value.get("enabled") is False or (value.get("device") in ("none", None) and "device" in value)
    return value in (None, False)


def _remaining(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Without what has become a typed value: the trainer sets those from the typed fields."""
    absorbed = {
        *_REFUSED,
        "fp16",
        "gradient_clipping",
        "train_batch_size",
        "train_micro_batch_size_per_gpu",
        "gradient_accumulation_steps",
    }
    kept = {key: value for key, value in raw.items() if key not in absorbed}
    for section, dropped in (("zero_optimization", {"stage", *_REFUSED_ZERO}), ("bf16", {"enabled"})):
        if section in kept:
            kept[section] = {key: value for key, value in kept[section].items() if key not in dropped}
    return {key: value for key, value in kept.items() if value != {}}


def _without_auto(raw: Mapping[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in raw.items() if value != "auto" and value is not None}
    return {key: _without_auto(value) if isinstance(value, Mapping) else value for key, value in kept.items()}


def _section(raw: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    section = raw.get(name, {})
    if not isinstance(section, Mapping):
        raise SpecError("DeepSpeedConfigInvalid", f"{RAW}.{name} is {section!r}, but must be an object")
    return section


def _enabled(raw: Mapping[str, Any], name: str) -> bool | None:
    value = _section(raw, name).get("enabled")
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
