"""The identity of batch sizes, checked first: globalBatchSize = ranks x microBatchSize x accumulation.

Ranks that share sequences (sequenceParallelSize) or layers (tensorParallelSize) count as one here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sftjob_operator.api.v1alpha1 import Spec

_RAW_GLOBAL = "spec.deepspeed.config.train_batch_size"
_RAW_MICRO = "spec.deepspeed.config.train_micro_batch_size_per_gpu"
_RAW_STEPS = "spec.deepspeed.config.gradient_accumulation_steps"
_GLOBAL = "spec.training.globalBatchSize"
_MICRO = "spec.deepspeed.microBatchSize"


class SpecError(ValueError):
    """The spec contradicts itself: `reason` for the condition, a sentence that names field and fix."""

    def __init__(self, reason: str, message: str) -> None:
        """Keep both."""
        super().__init__(message)
        self.reason, self.message = reason, message


@dataclass(frozen=True)
class BatchSizes:
    """Sequences per optimizer step over all ranks, and per rank and forward pass (None = to be chosen)."""

    global_size: int
    micro_size: int | None


def replicas(spec: Spec, world_size: int) -> int:
    """Groups of ranks with sequences of their own; SpecError where ranks would be left over."""
    chosen = spec.deepspeed
    per_node = "gpusPerNode or processesPerNode"
    ranks = f"ranks ({world_size}), which is spec.workers.nodes times {per_node}"
    field, size = "sequenceParallelSize", chosen.sequence_parallel_size
    _require_divisor("SequenceParallelNotDivisible", field, size, world_size, ranks)
    local = spec.workers.gpus_per_node or spec.workers.processes_per_node or 1
    ranks = f"ranks of a node ({local}), which is spec.workers.{per_node}"
    field, size = "tensorParallelSize", chosen.tensor_parallel_size
    _require_divisor("TensorParallelNotDivisible", field, size, local, ranks)
    # at least one: sharing both ways is refused as such (combinations)
    return max(1, world_size // (chosen.sequence_parallel_size * chosen.tensor_parallel_size))


def _require_divisor(reason: str, field: str, size: int, number: int, what: str) -> None:
    if number % size == 0:
        return
    fitting = ", ".join(str(each) for each in range(1, min(number, 64) + 1) if number % each == 0)
    raise SpecError(
        reason,
        f"spec.deepspeed.{field} ({size}) does not divide the number of {what}; what does: {fitting}",
    )


def batch_sizes(spec: Spec, raw: Mapping[str, Any], world_size: int) -> BatchSizes:
    """The sizes a spec asks for; SpecError names both fields of a contradiction, or the nearest sizes."""
    ranks = "ranks"
    if (groups := replicas(spec, world_size)) < world_size:
        ranks = f"groups of {world_size // groups} ranks"
        world_size = groups
    micro = _merged(
        _MICRO, spec.deepspeed.micro_batch_size, _RAW_MICRO, raw.get("train_micro_batch_size_per_gpu")
    )
    steps = _positive(_RAW_STEPS, raw.get("gradient_accumulation_steps"))
    given = "global_batch_size" in spec.training.model_fields_set
    typed = spec.training.global_batch_size if given else None
    total = _merged(_GLOBAL, typed, _RAW_GLOBAL, raw.get("train_batch_size"))
    if total is None and micro is not None and steps is not None:
        total = world_size * micro * steps
    if total is None:
        total = spec.training.global_batch_size
    name = f"{_GLOBAL} ({total}{'' if given or 'train_batch_size' in raw else ', the default'})"
    _check(name, total, world_size, 1, f"the number of {ranks} ({world_size})")
    if micro is not None:
        _check(name, total, world_size, micro, f"{world_size} {ranks} times microBatchSize {micro}")
    if steps is not None:
        _check(name, total, world_size, steps, f"{world_size} {ranks} times {_RAW_STEPS} {steps}")
        if micro is not None and world_size * micro * steps != total:
            raise SpecError(
                "DeepSpeedConfigConflict",
                f"{_RAW_STEPS} is {steps}, but {_GLOBAL} is {total}: {world_size} {ranks} times "
                f"microBatchSize {micro} times {steps} makes {world_size * micro * steps}; "
                f"remove {_RAW_STEPS}, it is derived",
            )
        micro = total // (world_size * steps)
    return BatchSizes(total, micro)


def _check(name: str, total: int, world_size: int, factor: int, product: str) -> None:
    unit = world_size * factor
    if total % unit:
        below, above = total // unit * unit, (total // unit + 1) * unit
        nearest = f"{below} or {above}" if below else str(above)
        raise SpecError(
            "BatchNotDivisible", f"{name} is not divisible by {product}; the nearest that is: {nearest}"
        )


def _merged(typed_path: str, typed: int | None, raw_path: str, raw: Any) -> int | None:
    value = _positive(raw_path, raw)
    if typed is not None and value is not None and typed != value:
        raise SpecError(
            "DeepSpeedConfigConflict",
            f"{raw_path} is {value}, but {typed_path} is {typed}: remove one of them, or make them equal",
        )
    return typed if typed is not None else value


def _positive(path: str, value: Any) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 2**31:
        raise SpecError("DeepSpeedConfigInvalid", f"{path} is {value!r}, but must be a whole number above 0")
    return value
