"""What cannot work together, with the reason and the way out: refused before anything runs.

One row for each; docs/planning.md shows the same table. A row speaks only of what was asked for: what is left
open is chosen so that no row applies.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sftjob_operator.api.v1alpha1 import Spec
from sftjob_operator.planning.batch import SpecError
from sftjob_operator.planning.intent import Intent, is_dora, trains_rows


@dataclass(frozen=True)
class Row:
    """Two or more choices that exclude each other."""

    together: str
    reason: str
    fix: str
    meets: Callable[[Spec, Intent], bool]


def _bf16_masters(spec: Spec) -> bool:
    return spec.training.master_weights != "FP32"


def _is_muon(spec: Spec) -> bool:
    return spec.training.optimizer.type == "Muon"


ROWS = (
    Row(
        "model.attention FlashAttention and workers.gpusPerNode 0",
        "it computes on GPUs",
        "set model.attention to SDPA, or remove it",
        lambda spec, wanted: spec.model.attention == "FlashAttention" and wanted.accelerator == "cpu",
    ),
    Row(
        "model.attention Eager and deepspeed.sequenceParallelSize above 1",
        "ranks that share sequences attend by FlashAttention or SDPA, document by document",
        "remove model.attention, or set deepspeed.sequenceParallelSize to 1",
        lambda spec, wanted: spec.model.attention == "Eager" and wanted.sequence_ranks > 1,
    ),
    Row(
        "deepspeed.tensorParallelSize above 1 and deepspeed.sequenceParallelSize above 1",
        "a group of ranks shares either layers or sequences",
        "set one of them to 1",
        lambda spec, wanted: wanted.tensor_ranks > 1 and wanted.sequence_ranks > 1,
    ),
    Row(
        "deepspeed.tensorParallelSize above 1 and deepspeed.zeroStage 0 or 3",
        "stage 0 knows only the gradient norm of a rank's own share, and stage 3 parts all weights already",
        "set deepspeed.zeroStage to 1 or 2, or remove it",
        lambda spec, wanted: wanted.tensor_ranks > 1 and wanted.zero_stage in (0, 3),
    ),
    Row(
        "deepspeed.tensorParallelSize above 1 and deepspeed.activationCheckpointing Selective",
        "DeepSpeed adds up the shares of a matrix product in place, and what is kept of it would be added up twice",
        "set deepspeed.activationCheckpointing to None or Full, or remove it",
        lambda spec, wanted: wanted.tensor_ranks > 1 and wanted.activation_checkpointing == "Selective",
    ),
    Row(
        "deepspeed.tensorParallelSize above 1 and training.method LoRA or QLoRA",
        "adapters lie beside whole layers",
        "remove deepspeed.tensorParallelSize, or set training.method to Full",
        lambda spec, wanted: wanted.tensor_ranks > 1 and spec.training.method != "Full",
    ),
    Row(
        "deepspeed.tensorParallelSize above 1 and training.optimizer.type Muon",
        "it takes whole matrices to orthogonal ones",
        "remove deepspeed.tensorParallelSize, or set training.optimizer.type to AdamW",
        lambda spec, wanted: wanted.tensor_ranks > 1 and _is_muon(spec),
    ),
    Row(
        "deepspeed.tensorParallelSize above 1 and training.masterWeights BF16StochasticRounding",
        "every rank has its own copy of what is not shared, and each would be rounded in another way",
        "remove deepspeed.tensorParallelSize, or set training.masterWeights to BF16 or FP32",
        lambda spec, wanted: (
            wanted.tensor_ranks > 1 and spec.training.master_weights == "BF16StochasticRounding"
        ),
    ),
    Row(
        "deepspeed.tensorParallelSize above 1 and deepspeed.offloadOptimizer or offloadParameters CPU",
        "neither is tested with the other, and stage 3 offloads what does not fit",
        "remove deepspeed.tensorParallelSize, or what is offloaded",
        lambda spec, wanted: (
            wanted.tensor_ranks > 1 and "CPU" in (wanted.offload_optimizer, wanted.offload_parameters)
        ),
    ),
    Row(
        "model.attention FlashAttention and training.precision fp32",
        "it computes in bf16 and fp16",
        "set model.attention to SDPA, or remove it; or training.precision to bf16",
        lambda spec, wanted: spec.model.attention == "FlashAttention" and wanted.precision == "fp32",
    ),
    Row(
        "training.precision fp16 and workers.gpusPerNode 0",
        "CPUs compute in bf16 or fp32",
        "set training.precision to bf16 or fp32, or remove it",
        lambda spec, wanted: wanted.precision == "fp16" and wanted.accelerator == "cpu",
    ),
    Row(
        "training.precision fp16 and deepspeed.zeroStage 0",
        "DeepSpeed's stage 0 accumulates gradients in fp16, where small ones vanish",
        "set deepspeed.zeroStage to 1 (on a single GPU too), or remove it",
        lambda spec, wanted: wanted.precision == "fp16" and wanted.zero_stage == 0,
    ),
    Row(
        "deepspeed.offloadOptimizer CPU and deepspeed.zeroStage 0",
        "stage 0 has no optimizer partition that could be elsewhere",
        "set deepspeed.zeroStage to 3, or remove it",
        lambda spec, wanted: wanted.offload_optimizer == "CPU" and wanted.zero_stage == 0,
    ),
    Row(
        "deepspeed.offloadParameters CPU and deepspeed.zeroStage 0, 1 or 2",
        "below stage 3 every rank computes with whole weights",
        "set deepspeed.zeroStage to 3, or remove it",
        lambda spec, wanted: wanted.offload_parameters == "CPU" and wanted.zero_stage in (0, 1, 2),
    ),
    Row(
        "training.lora.variant DoRA and deepspeed.zeroStage 3 or deepspeed.offloadParameters CPU",
        "it takes norms of whole weights, which stage 3 partitions",
        "set deepspeed.zeroStage to 2 or lower, or training.lora.variant to RSLoRA",
        lambda spec, wanted: is_dora(spec) and (wanted.zero_stage == 3 or wanted.offload_parameters == "CPU"),
    ),
    Row(
        "training.method QLoRA and deepspeed.zeroStage 3 or deepspeed.offloadParameters CPU",
        "stage 3 cuts weights into parts, which four-bit ones, packed by blocks, cannot be",
        "set deepspeed.zeroStage to 2 or lower, or training.method to LoRA",
        lambda spec, wanted: (
            spec.training.method == "QLoRA" and (wanted.zero_stage == 3 or wanted.offload_parameters == "CPU")
        ),
    ),
    Row(
        "model.addTokens with training.method LoRA and deepspeed.zeroStage 3 or deepspeed.offloadParameters CPU",
        "their rows are trained inside embeddings, which stage 3 partitions",
        "set deepspeed.zeroStage to 2 or lower, or training.method to Full",
        lambda spec, wanted: (
            trains_rows(spec) and (wanted.zero_stage == 3 or wanted.offload_parameters == "CPU")
        ),
    ),
    Row(
        "training.optimizer.type Muon and deepspeed.zeroStage 1, 2 or 3",
        "it takes matrices to orthogonal ones, and ZeRO's partitions are not matrices (DeepSpeed's own Muon gathers "
        "them, but clips its steps instead of gradients)",
        "set deepspeed.zeroStage to 0, or remove it; or training.optimizer.type to AdamW",
        lambda spec, wanted: _is_muon(spec) and wanted.zero_stage in (1, 2, 3),
    ),
    Row(
        "training.optimizer.type Muon and deepspeed.offloadOptimizer or offloadParameters CPU",
        "it works at stage 0, which has no partition that could be elsewhere",
        "remove what is offloaded, or set training.optimizer.type to AdamW",
        lambda spec, wanted: (
            _is_muon(spec) and "CPU" in (wanted.offload_optimizer, wanted.offload_parameters)
        ),
    ),
    Row(
        "training.optimizer.type Muon and training.method LoRA or QLoRA",
        "an update is the product of an adapter's two matrices, and is not orthogonal when each of them is",
        "set training.optimizer.type to AdamW",
        lambda spec, wanted: _is_muon(spec) and spec.training.method != "Full",
    ),
    Row(
        "training.optimizer.type Muon and training.precision fp16",
        "it works at stage 0, where DeepSpeed accumulates gradients in fp16 and small ones vanish",
        "set training.precision to bf16 or fp32, or remove it",
        lambda spec, wanted: _is_muon(spec) and wanted.precision == "fp16",
    ),
    Row(
        "training.optimizer.type Muon and training.masterWeights BF16 or BF16StochasticRounding",
        "it has no step for bf16 weights",
        "remove training.masterWeights, or set training.optimizer.type to AdamW",
        lambda spec, wanted: _is_muon(spec) and _bf16_masters(spec),
    ),
    Row(
        "training.masterWeights BF16 or BF16StochasticRounding and training.precision fp16 or fp32",
        "the weights that are updated are those that are computed with",
        "set training.precision to bf16, or remove it",
        lambda spec, wanted: _bf16_masters(spec) and wanted.precision != "bf16",
    ),
    Row(
        "training.masterWeights BF16 or BF16StochasticRounding and deepspeed.zeroStage 0 or 1",
        "there DeepSpeed keeps fp32 master weights whatever is asked for",
        "set deepspeed.zeroStage to 2 or 3 (on a single GPU too), or remove it",
        lambda spec, wanted: _bf16_masters(spec) and wanted.zero_stage in (0, 1),
    ),
    Row(
        "training.masterWeights BF16 or BF16StochasticRounding and deepspeed.offloadOptimizer or offloadParameters CPU",
        "DeepSpeed then updates bf16 weights with its own CPUAdam only, which would be compiled at the first use",
        "remove what is offloaded, or set training.masterWeights to FP32",
        lambda spec, wanted: (
            _bf16_masters(spec) and "CPU" in (wanted.offload_optimizer, wanted.offload_parameters)
        ),
    ),
    Row(
        "deepspeed.config.zero_optimization.zero_hpz_partition_size and any zeroStage but 3",
        "it is a second partition of the weights, which only stage 3 partitions",
        "set deepspeed.zeroStage to 3, or remove the key",
        lambda spec, wanted: wanted.secondary_size > 1 and wanted.zero_stage != 3,
    ),
    Row(
        "deepspeed.config.zero_optimization.zero_hpz_partition_size and a number of ranks that it does not divide",
        "every group of so many ranks holds all weights",
        "set it to the number of ranks of a node, or remove the key",
        lambda spec, wanted: wanted.secondary_size > 1 and wanted.world_size % wanted.secondary_size > 0,
    ),
    Row(
        "deepspeed.config.zero_optimization.zero_quantized_* and any zeroStage but 3, or workers.gpusPerNode 0",
        "what is quantised is stage 3's communication, by a kernel of GPUs",
        "set deepspeed.zeroStage to 3, or remove the key",
        lambda spec, wanted: wanted.quantizes and (wanted.zero_stage != 3 or wanted.accelerator == "cpu"),
    ),
)


def refuse_what_cannot_work_together(spec: Spec, wanted: Intent) -> None:
    """SpecError for the first row that applies to what `spec` asks for."""
    for row in ROWS:
        if row.meets(spec, wanted):
            raise SpecError(
                "CombinationUnsupported", f"{row.together} exclude each other: {row.reason}; {row.fix}"
            )


def table() -> str:
    """The rows in Markdown."""
    lines = [f"| {row.together} | {row.reason} | {row.fix} |" for row in ROWS]
    return "\n".join(["| Together | Why not | Instead |", "|---|---|---|", *lines])
