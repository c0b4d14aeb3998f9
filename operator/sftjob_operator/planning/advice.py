"""What to say when nothing fits: the need, what there is, and the smallest changes that would fit."""

from __future__ import annotations

from typing import Any

from sft_trainer.config import ModelFacts
from sftjob_operator.api.status import PlanStatus
from sftjob_operator.api.v1alpha1 import Spec
from sftjob_operator.planning.batch import SpecError
from sftjob_operator.planning.combinations import refuse_what_cannot_work_together
from sftjob_operator.planning.hardware import Hardware, gibibytes, mebibytes, quantity_bytes
from sftjob_operator.planning.intent import intent
from sftjob_operator.planning.plan import NoFit, Plan, plan

_MOST_NODES = 64
_PLURAL = {"GPU": "GPUs", "process": "processes"}
_RECOMPUTE = {"Full": "", "Selective": "selective "}

_ASSUMED = " (assumed: no node says how much a GPU has; set the chart's operator.gpuMemory)"

Changes = dict[str, dict[str, Any]]


def fits_message(spec: Spec, chosen: PlanStatus) -> str:
    """One sentence for Planned=True."""
    unit = "GPU" if spec.workers.gpus_per_node else "process"
    passes = chosen.gradient_accumulation_steps
    whose = unit
    for shared, what in (chosen.sequence_parallel_size, "sequences"), (chosen.tensor_parallel_size, "layers"):
        if shared > 1:
            whose = f"{shared} {_PLURAL[unit]} that share {what}"
    parts = [f"ZeRO-{chosen.zero_stage}", f"micro-batch {chosen.micro_batch_size} x {passes} per {whose}"]
    if chosen.activation_checkpointing != "None":
        parts.append(f"{_RECOMPUTE[chosen.activation_checkpointing]}activation checkpointing")
    on_cpu = _on_cpu(chosen.offload_optimizer, chosen.offload_parameters)
    if on_cpu and chosen.memory.host is not None:
        on_cpu += f" ({gibibytes(quantity_bytes(chosen.memory.host))} per {unit} of the pod's memory)"
    parts += [on_cpu] if on_cpu else []
    need = quantity_bytes(chosen.memory.per_gpu)
    if chosen.memory.available is None:
        parts.append(f"about {gibibytes(need)} per {unit} (what there is, is unknown)")
    else:
        has = gibibytes(quantity_bytes(chosen.memory.available))
        parts.append(f"{need / 2**30:.1f} of {has} per {unit}{_ASSUMED if chosen.memory.assumed else ''}")
    return ", ".join(parts)


def no_fit_message(spec: Spec, model: ModelFacts, hardware: Hardware, result: NoFit) -> str:
    """One or two sentences for Planned=False: estimate, available, and what would fit."""
    if result.indivisible is not None:
        return result.indivisible
    unit = "GPU" if spec.workers.gpus_per_node else "process"
    least = result.smallest
    ways = [way for way in (_nodes(spec, model, hardware), *_changes(spec, model, hardware)) if way]
    advice = f"it would fit with {' or '.join(ways)}" if ways else f"use a {unit} with more memory"
    how = [f"ZeRO-{least.stage}", f"micro-batch {least.micro}"]
    if least.checkpointing != "None":
        how[-1] += f" with {_RECOMPUTE[least.checkpointing]}activation checkpointing"
    how += [on_cpu] if (on_cpu := _on_cpu(least.offload_optimizer, least.offload_parameters)) else []
    if result.host_bytes is not None:
        pod = least.memory.host * spec.workers.gpus_per_node
        return (
            f"offloading needs about {gibibytes(least.memory.host)} of the pod's own memory per GPU at least "
            f"({', '.join(how)}), but there are {gibibytes(result.host_bytes)}; set "
            f"spec.workers.resources.limits.memory to {mebibytes(pod)} or more, or use more nodes"
        )
    return (
        f"training needs about {gibibytes(least.memory.total)} per {unit} at least "
        f"({', '.join(how)}), but there are {gibibytes(result.available_bytes)}"
        f"{_ASSUMED if result.assumed else ''}; "
        f"{advice}"
    )


def _on_cpu(optimizer: str, parameters: str) -> str:
    """What is offloaded, in words; empty where nothing is."""
    what = [word for word, where in (("optimizer", optimizer), ("parameters", parameters)) if where == "CPU"]
    return f"{' and '.join(what)} on the CPU" if what else ""


def _nodes(spec: Spec, model: ModelFacts, hardware: Hardware) -> str | None:
    ranks = spec.workers.gpus_per_node or spec.workers.processes_per_node or 1
    nodes = spec.workers.nodes * 2
    while nodes <= _MOST_NODES:
        more: Changes = {"workers": {"nodes": nodes}}
        words = f"spec.workers.nodes: {nodes}"
        sharing = spec.deepspeed.sequence_parallel_size * spec.deepspeed.tensor_parallel_size
        groups = max(1, nodes * ranks // sharing)
        if spec.training.global_batch_size % groups:
            size = -(-spec.training.global_batch_size // groups) * groups
            more["training"] = {"global_batch_size": size}
            words += f" (and spec.training.globalBatchSize: {size})"
        if _would_fit(spec, model, hardware, more):
            return words
        nodes *= 2
    return None


def _changes(spec: Spec, model: ModelFacts, hardware: Hardware) -> list[str]:
    free = {"zero_stage": None, "micro_batch_size": None, "activation_checkpointing": None}
    set_by_user = [
        f"spec.deepspeed.{alias}"
        for name, alias in zip(free, ("zeroStage", "microBatchSize", "activationCheckpointing"), strict=True)
        if getattr(spec.deepspeed, name) is not None
    ]
    left = f"{' and '.join(set_by_user)} left to the planner"
    less = {"Full": ("LoRA", "QLoRA"), "LoRA": ("QLoRA",), "QLoRA": ()}[spec.training.method]
    found: list[str] = []
    if set_by_user and _would_fit(spec, model, hardware, {"deepspeed": free}):
        found.append(left)
    for more, words in ({}, ""), ({"deepspeed": free}, f" and {left}"):
        if words and (found or not set_by_user):
            break
        changes: dict[str, Changes] = {name: {"training": {"method": name}, **more} for name in less}
        fits = next((name for name in less if _would_fit(spec, model, hardware, changes[name])), None)
        if fits is not None:
            found.append(f"spec.training.method: {fits}{words}")
    optimizer = spec.training.optimizer.model_copy(update={"type": "AdamW"})
    if spec.training.optimizer.type == "Muon" and _would_fit(
        spec, model, hardware, {"training": {"optimizer": optimizer}}
    ):
        found.append("spec.training.optimizer.type: AdamW")
    length = spec.data.max_length // 2
    while length >= 256:
        if _would_fit(spec, model, hardware, {"data": {"max_length": length}}):
            found.append(f"spec.data.maxLength: {length}")
            break
        length //= 2
    return found + _sharing(spec, model, hardware) + _offloading(spec, model, hardware)


def _sharing(spec: Spec, model: ModelFacts, hardware: Hardware) -> list[str]:
    """The fewest GPUs that would have to share sequences. Never chosen unasked: not every model's attention can."""
    ranks = spec.workers.nodes * (spec.workers.gpus_per_node or spec.workers.processes_per_node or 1)
    for size in range(spec.deepspeed.sequence_parallel_size + 1, ranks + 1):
        if ranks % size == 0 and _would_fit(
            spec, model, hardware, {"deepspeed": {"sequence_parallel_size": size}}
        ):
            return [f"spec.deepspeed.sequenceParallelSize: {size}"]
    return []


def _offloading(spec: Spec, model: ModelFacts, hardware: Hardware) -> list[str]:
    """Offloading, which the planner does not choose where it does not know of the memory."""
    fields = {"offload_optimizer": "offloadOptimizer", "offload_parameters": "offloadParameters"}
    more: dict[str, str] = {}
    for name in fields if spec.workers.gpus_per_node else ():
        more[name] = "CPU"
        if getattr(spec.deepspeed, name) is not None:
            return []
        found = _planned(spec, model, hardware, {"deepspeed": {**more, "zero_stage": None}})
        if found is not None and found.host_bytes is not None:
            words = [f"spec.deepspeed.{fields[each]}: CPU" for each in more]
            if spec.deepspeed.zero_stage is not None:
                words.append("spec.deepspeed.zeroStage left to the planner")
            memory = mebibytes(found.host_bytes * spec.workers.gpus_per_node)
            return [" and ".join([*words, f"spec.workers.resources.limits.memory: {memory}"])]
    return []


def _would_fit(spec: Spec, model: ModelFacts, hardware: Hardware, change: Changes) -> bool:
    return _planned(spec, model, hardware, change) is not None


def _planned(spec: Spec, model: ModelFacts, hardware: Hardware, change: Changes) -> Plan | None:
    parts = {name: getattr(spec, name).model_copy(update=update) for name, update in change.items()}
    changed = spec.model_copy(update=parts)
    try:
        refuse_what_cannot_work_together(changed, intent(changed))
        found = plan(changed, model, hardware)
    except SpecError:
        return None
    return found if isinstance(found, Plan) else None
