"""What a spec asks for once its raw DeepSpeed configuration has been read: one value per question, or None.

A raw key fills the typed field that is unset; `"auto"` counts as unset. What contradicts a typed field, or
what this trainer cannot honour, is refused by name: accepted and ignored would be worse.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from sftjob_operator.api.v1alpha1 import DORA_NEEDS_WHOLE_WEIGHTS, Spec
from sftjob_operator.planning.batch import SpecError, batch_sizes
from sftjob_operator.planning.rawkeys import RAW, handed_on, refuse_what_would_be_ignored, section_of


@dataclass(frozen=True)
class Intent:
    """The decided part of the spec. None = the planner decides."""

    nodes: int
    processes_per_node: int
    accelerator: Literal["gpu", "cpu"]
    global_batch_size: int
    micro_batch_size: int | None
    zero_stage: int | None
    highest_stage: int
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
    refuse_what_would_be_ignored(spec.deepspeed.config or {})
    raw = _without_auto(spec.deepspeed.config or {})
    workers = spec.workers
    processes = workers.gpus_per_node or workers.processes_per_node or 1
    stage, highest = _zero_stage(spec, raw), _highest_stage(spec)
    if stage is not None and stage > highest:
        raise SpecError("DeepSpeedConfigUnsupported", DORA_NEEDS_WHOLE_WEIGHTS)
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
        highest_stage=highest,
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


def _highest_stage(spec: Spec) -> int:
    """The highest ZeRO stage at which this method works."""
    is_dora = spec.training.lora is not None and spec.training.lora.variant == "DoRA"
    return 2 if is_dora else 3


def _precision(spec: Spec, raw: Mapping[str, Any]) -> Literal["bf16", "fp32"] | None:
    typed = spec.training.precision
    enabled = {name: _enabled(raw, name) for name in ("bf16", "fp16")}
    if enabled["fp16"] and typed is not None:
        raise _conflict(f"{RAW}.fp16.enabled", "true", "spec.training.precision", typed)
    if section_of(raw, "fp16") and enabled["fp16"] is not False:
        raise SpecError(
            "DeepSpeedConfigUnsupported",
            f"{RAW}.fp16: fp16 is not supported by this version; remove it (or set enabled: false) and set "
            "spec.training.precision to bf16 or fp32, or leave it to the hardware",
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
