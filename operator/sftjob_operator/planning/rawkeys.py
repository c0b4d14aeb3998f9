"""Which keys of DeepSpeed's own configuration this trainer can honour; every other one is refused by name.

An allow-list of DeepSpeed 0.19's keys: it ignores a key that it does not know, so a typo would train something
else in silence. A test compares the lists with what the installed DeepSpeed reads.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

from sftjob_operator.planning.batch import SpecError

RAW = "spec.deepspeed.config"

ABSORBED = frozenset(
    {
        "gradient_accumulation_steps",
        "gradient_clipping",
        "train_batch_size",
        "train_micro_batch_size_per_gpu",
    }
)
"""They become typed values."""

HANDED_ON = frozenset(
    {
        "bf16",
        "comet",
        "comms_logger",
        "communication_data_type",
        "csv_monitor",
        "data_types",
        "disable_allgather",
        "disable_python_gc",
        "dump_state",
        "flops_profiler",
        "fp16",
        "log_level",
        "memory_breakdown",
        "steps_per_print",
        "tensorboard",
        "timers",
        "vocabulary_size",
        "wall_clock_breakdown",
        "wandb",
        "zero_allow_untested_optimizer",
        "zero_optimization",
    }
)
"""The trainer lays them over its own configuration."""

_OFFLOADING = "set spec.deepspeed.offloadOptimizer and offloadParameters instead"
_NVME = (
    "offloading to NVMe is not supported: DeepSpeed's checkpoints of it cannot be continued exactly, nor by another number "
    "of ranks"
)
_KERNEL = "the optimizer on the CPU is torch's, not DeepSpeed's"
_EXPERTS = "mixtures of experts are not partitioned by this version"
_ORDER = "it reorders the data, and resuming would not be exact"
_SCALE = "it would change the gradient's scale, which is exact as it is"
_PRECISION = "set spec.training.precision instead"
_OURS = "checkpoints are ours; set spec.checkpoint instead"
_SEQUENCE = "set spec.deepspeed.sequenceParallelSize instead"

REFUSED = {
    "activation_checkpointing": "set spec.deepspeed.activationCheckpointing instead",
    "aio": _NVME,
    "amp": _PRECISION,
    "autotuning": "the operator plans; see status.plan",
    "bfloat16": "write bf16",
    "checkpoint": _OURS,
    "compile": "compilation is not supported: with activation checkpointing or ZeRO stage 3 it would do nothing",
    "compression_training": "compression is not supported by this version",
    "curriculum_learning": _ORDER,
    "data_efficiency": _ORDER,
    "dataloader_drop_last": "the trainer reads its own data and drops nothing",
    "datastates_ckpt": _OURS,
    "elasticity": "the number of ranks is spec.workers.nodes times gpusPerNode",
    "expert_parallel": _EXPERTS,
    "gradient_allreduce_op": _SCALE,
    "gradient_predivide_factor": _SCALE,
    "hybrid_engine": "it is for RLHF, not for fine-tuning",
    "managed_gradient_accumulation": "accumulation is the trainer's; set spec.training.globalBatchSize",
    "optimizer": "set spec.training.optimizer and spec.training.learningRate instead",
    "pipeline": "pipeline parallelism is not supported by this version",
    "prescale_gradients": _SCALE,
    "scheduler": "set spec.training.scheduler instead",
    "seq_parallel_communication_data_type": "gradients of ranks that share sequences are reduced like all others",
    "sequence_parallel_size": _SEQUENCE,
    "sparse_attention": "sparse attention is not supported by this version",
    "tensor_parallel": "set spec.deepspeed.tensorParallelSize instead",
    "torch_autocast": _PRECISION,
    "use_data_before_expert_parallelism": _EXPERTS,
    "weight_quantization": "quantised training is not supported by this version",
    "zero_force_ds_cpu_optimizer": _KERNEL,
}
"""DeepSpeed knows them, but here they would be ignored, or break a promise; with the way to say it instead."""

QUANTIZED = ("zero_quantized_gradients", "zero_quantized_nontrainable_weights", "zero_quantized_weights")
"""ZeRO++'s; a pod whose image has no quantizer says so (sft_trainer.prebuilt)."""

ZERO_HANDED_ON = frozenset(
    {
        "allgather_bucket_size",
        "allgather_partitions",
        "contiguous_gradients",
        "enable_sanity_checks",
        "ignore_unused_parameters",
        "leaf_module",
        "log_trace_cache_warnings",
        "memory_efficient_linear",
        "offload_optimizer",
        "offload_param",
        "overlap_comm",
        "override_module_apply",
        "parameter_alignment",
        "reduce_bucket_size",
        "reduce_scatter",
        "stage",
        "stage3_gather_fp16_weights_on_model_save",
        "sub_group_size",
        "use_multi_rank_bucket_allreduce",
        "zero_hpz_partition_size",
        *QUANTIZED,
    }
    | {
        f"{prefix}{key}"  # DeepSpeed takes them with and without
        for prefix in ("", "stage3_")
        for key in (
            "allgather_sequential",
            "gather_16bit_weights_on_model_save",
            "max_live_parameters",
            "max_reuse_distance",
            "model_persistence_threshold",
            "module_granularity_threshold",
            "param_persistence_threshold",
            "prefetch_bucket_size",
            "use_all_reduce_for_fetch_params",
        )
    }
)
ZERO_REFUSED = {
    "compute_grad_norm": "the norm of the gradients is always clipped by spec.training.maxGradNorm, and reported",
    "cpu_offload": _OFFLOADING,
    "cpu_offload_param": _OFFLOADING,
    "cpu_offload_use_pin_memory": _OFFLOADING,
    "elastic_checkpoint": _OURS,
    "legacy_stage1": "only the current implementation is supported",
    "load_from_fp32_weights": _OURS,
    "pipeline_loading_checkpoint": _OURS,
    "round_robin_gradients": "with it DeepSpeed does not say where a parameter lies, and no other number of ranks could go "
    "on from a checkpoint",
    "save_muon_momentum_buffer_in_memory": "set spec.training.optimizer instead",
    "zenflow": _OFFLOADING,
}
OFFLOAD_HANDED_ON = frozenset({"device", "pin_memory"})
OFFLOAD_REFUSED = {
    **dict.fromkeys(
        ("buffer_count", "buffer_size", "max_in_cpu", "nvme_path", "pipeline_read", "pipeline_write"), _NVME
    ),
    **dict.fromkeys(("cpuadam_cores_perc", "fast_init", "ratio", "super_offload"), _KERNEL),
}
BF16_HANDED_ON = frozenset({"check_grad_overflow", "enabled", "immediate_grad_update"})
BF16_REFUSED = dict.fromkeys(
    ("bf16_master_weights_and_grads", "bf16_optimizer_states"),
    "set spec.training.masterWeights instead",
)
FP16_HANDED_ON = frozenset(
    {
        "consecutive_hysteresis",
        "enabled",
        "hysteresis",
        "initial_scale_power",
        "loss_scale_window",
        "min_loss_scale",
    }
)
FP16_REFUSED = {
    "auto_cast": "the trainer's inputs are token ids",
    "fp16_master_weights_and_grads": "master weights and gradients are kept in fp32",
    "loss_scale": "the scale is dynamic",
}
DATA_TYPES_HANDED_ON = frozenset({"buffer_dtype", "keep_in_fp32_modules"})
DATA_TYPES_REFUSED = {
    "grad_accum_dtype": "gradients are accumulated in fp32 wherever DeepSpeed can",
    "param_dtype": _PRECISION,
}

_SECTIONS: dict[str, tuple[frozenset[str], dict[str, str]]] = {
    "": (HANDED_ON | ABSORBED, REFUSED),
    "zero_optimization": (ZERO_HANDED_ON, ZERO_REFUSED),
    "zero_optimization.offload_optimizer": (OFFLOAD_HANDED_ON, OFFLOAD_REFUSED),
    "zero_optimization.offload_param": (OFFLOAD_HANDED_ON, OFFLOAD_REFUSED),
    "bf16": (BF16_HANDED_ON, BF16_REFUSED),
    "fp16": (FP16_HANDED_ON, FP16_REFUSED),
    "data_types": (DATA_TYPES_HANDED_ON, DATA_TYPES_REFUSED),
}
_FACTORED = frozenset({"adafactor", "adalomo", "came", "galore", "galoreadamw", "shampoo", "sm3", "soap"})
_ON_BY_DEFAULT = frozenset({"compute_grad_norm", "load_from_fp32_weights"})  # what says so changes nothing
# With `enabled: false` they change nothing.
_SWITCHED = frozenset(
    {
        "amp",
        "autotuning",
        "curriculum_learning",
        "data_efficiency",
        "elasticity",
        "hybrid_engine",
        "torch_autocast",
    }
)


def refuse_what_would_be_ignored(raw: Mapping[str, Any]) -> None:
    """SpecError for the first key that DeepSpeed or this trainer would not honour."""
    for name, (known, refused) in _SECTIONS.items():
        section = section_of(raw, name) if name else raw
        path = f"{RAW}.{name}" if name else RAW
        for key, value in section.items():
            if key in refused and not _is_off(key, value):
                why = _factored(key, value) or refused[key]
                raise SpecError("DeepSpeedConfigUnsupported", f"{path}.{key}: remove it; {why}")
            if key not in refused and key not in known:
                raise SpecError(
                    "DeepSpeedConfigUnsupported", f"{path}.{key[:64]}: {_unknown(key[:64], known)}"
                )


def handed_on(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Without what has become a typed value, and without what is switched off."""
    kept = {key: value for key, value in raw.items() if key in HANDED_ON}
    if section_of(kept, "fp16").get("enabled") is False:
        del kept["fp16"]
    typed_keys = {"zero_optimization": "stage", "bf16": "enabled", "fp16": "enabled", "data_types": ""}
    for name, typed in typed_keys.items():
        if name in kept:
            known = _SECTIONS[name][0] - {typed}
            kept[name] = {key: value for key, value in kept[name].items() if key in known}
    zero = kept.get("zero_optimization", {})
    for name in ("offload_optimizer", "offload_param"):
        if name in zero:
            zero[name] = {key: value for key, value in zero[name].items() if key != "device"}
            if zero[name] == {} or section_of(raw, f"zero_optimization.{name}")["device"] == "none":
                del zero[name]
    return {key: value for key, value in kept.items() if value != {}}


def section_of(raw: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """An object of the configuration, or `outer.inner` in one; empty where there is none."""
    outer, _, inner = name.partition(".")
    section = section_of(raw, outer).get(inner) if inner else raw.get(name)
    if section is None or section == "auto":
        return {}
    if not isinstance(section, Mapping):
        raise SpecError("DeepSpeedConfigInvalid", f"{RAW}.{name} is {section!r}, but must be an object")
    return section


def _factored(key: str, value: Any) -> str | None:
    """Why an optimizer that saves memory by the shape of a matrix is not merely under another name here."""
    kind = value.get("type") if key == "optimizer" and isinstance(value, Mapping) else None
    if not isinstance(kind, str) or kind.lower() not in _FACTORED:
        return None
    return (
        f"{kind[:64]} keeps factors of a matrix's rows and columns, and ZeRO flattens matrices: it would be another "
        f"optimizer in silence; {REFUSED[key]}"
    )


def _unknown(key: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(key, sorted(known), 1)
    fix = f"write {near[0]}, or remove it" if near else "remove it"
    return f"DeepSpeed has no such key and would ignore it; {fix}"


def _is_off(key: str, value: Any) -> bool:
    """Whether it says what is so without it: that changes nothing."""
    if key in _ON_BY_DEFAULT:
        return value in (None, True, "auto")
    if not isinstance(value, Mapping):
        return value in (None, False, "auto")
    return key in _SWITCHED and value.get("enabled") is False
