"""Bytes that one rank needs, from the model's facts: an upper estimate, explained in docs/planning.md.

States: ZeRO (https://arxiv.org/abs/1910.02054, sections 3.1 and 5), and what DeepSpeed 0.19.8 has beside them. The
buckets are the trainer's own (sft_trainer.engine).
"""

from __future__ import annotations

from dataclasses import dataclass

from sft_trainer.config import ModelFacts
from sftjob_operator.planning import activations
from sftjob_operator.planning.shape import Shape

GIB = 2**30
_BUCKET_ELEMENTS = {"gpu": 200_000_000, "cpu": 10_000_000}  # what sft_trainer.engine asks DeepSpeed for
_OVERHEAD = {"gpu": int(1.75 * GIB), "cpu": 1 * GIB}  # CUDA context and NCCL; interpreter and libraries
_HOST = 4 * GIB  # of a rank that computes on a GPU: interpreter, libraries, CUDA's own, data
# Bytes of a weight in four bits: a scale for 64 of them in eight bits, for 256 of those one in fp32 (QLoRA, section 3).
_NF4 = 0.5 + 1 / 64 + 4 / (64 * 256)
_SLACK = {"gpu": 0.08, "cpu": 0.20}  # of everything: fragmentation of the allocator


@dataclass(frozen=True)
class Memory:
    """Bytes of one rank: of its GPU, and, where something is offloaded from one, of the pod's own memory."""

    weights: int
    gradients: int
    optimizer: int
    buffers: int
    activations: int
    logits: int
    overhead: int
    slack: int
    host: int = 0

    @property
    def total(self) -> int:
        """All but `host`."""
        states = self.weights + self.gradients + self.optimizer + self.buffers
        return states + self.activations + self.logits + self.overhead + self.slack


def estimate(model: ModelFacts, shape: Shape) -> Memory:
    """The need of one rank."""
    size = 4 if shape.precision == "fp32" else 2
    trained = _of_one(model, shape, _trained(model, shape))
    parameters = _of_one(model, shape, model.parameters) + (0 if shape.lora_rank is None else trained)
    share, stage = max(shape.world_size // shape.tensor_ranks, 1), shape.zero_stage
    weights = parameters * size
    if shape.quantised:
        # experts are no linear layers of their own, and stay as they are
        linear = model.parameters - model.embedding_parameters - model.expert_parameters
        # four bits, and what they are multiplied by; one matrix at a time as it computes
        weights -= int(linear * (size - _NF4)) - model.hidden_size * model.intermediate_size * size
    if stage == 3:
        secondary = parameters * size // shape.secondary_size if shape.secondary_size > 1 else 0
        weights = weights // share + secondary + _gathered(model) * size
    largest = min(model.vocabulary_size * model.hidden_size, trained)  # of what has a gradient
    # fp32: the master copy (not where weights are fp32 themselves and nothing is partitioned), two moments
    master = 0 if size == 4 and stage == 0 else 4
    if shape.master_weights != "FP32":
        # a bf16 copy of what stage 2 updates; stage 3 updates the weights themselves
        master = 0 if stage == 3 else 2
    optimizer = trained * (master + 8) // (share if stage >= 1 else 1)
    if shape.muon:  # one moment of hidden matrices, and bf16 and fp32 copies of one of them in its step
        optimizer -= 4 * max(0, trained - model.embedding_parameters)
        optimizer += 12 * model.hidden_size * model.intermediate_size
    gradients = _gradients(shape, trained, size, share)
    host = 0
    if shape.offload_optimizer == "CPU" and shape.accelerator == "gpu":  # on a CPU it is the same memory
        # Beside the optimizer's: fp32 gradients; stage 3 has them once more for the optimizer (stage3.py,
        # grad_partitions_flat_buffer and .grad), the others the updated weights on their way back to the GPU, and the
        # largest gradient on its way. In fp32 stage 2 sums on the CPU (stage_1_and_2.py, accumulated_grads_in_cpu).
        sums_there = stage == 3 or (stage == 2 and size == 4)
        host = optimizer + trained * (4 + 4 * sums_there + (0 if stage == 3 else size)) // share
        host += 0 if stage == 3 else largest * size
        gradients, optimizer = (0 if sums_there else gradients), 0
    if shape.offload_parameters == "CPU" and shape.accelerator == "gpu":
        host += parameters * size // share
        weights = _gathered(model) * size
    kept = activations.of_layers(model, shape, size) + activations.of_adapters(model, shape, size)
    logits = activations.of_logits(model, shape, size)
    bucket = _buckets(shape, trained, size, kept + logits)
    if host:
        bucket += largest * size  # the largest gradient, on its way to the CPU
        # whole on the CPU, before any state is there; QLoRA packs on the GPU what it reads
        loaded = parameters * size if stage < 3 and not shape.quantised else 0
        host = int((max(host, loaded) + _HOST) * (1 + _SLACK["gpu"]))
    overhead = _OVERHEAD[shape.accelerator]
    needed = weights + gradients + optimizer + bucket + kept + logits + overhead
    return Memory(
        weights=weights,
        gradients=gradients,
        optimizer=optimizer,
        buffers=bucket,
        activations=kept,
        logits=logits,
        overhead=overhead,
        slack=int(needed * _SLACK[shape.accelerator]),
        host=host,
    )


def _is_bf16_optimizer(shape: Shape) -> bool:
    """Whether DeepSpeed takes its BF16_Optimizer (engine.py, _do_optimizer_sanity_check), which has no buckets."""
    return shape.zero_stage == 1 and shape.precision == "bf16" and shape.offload_optimizer != "CPU"


def _gradients(shape: Shape, trained: int, size: int, share: int) -> int:
    """Bytes at their peak: sums in fp32, and what DeepSpeed 0.19.8 has beside them.

    Stage 0 in bf16 sums in bf16, and copies the sums to fp32 in its step (unfused_optimizer.py). Stage 1 in bf16 keeps
    each pass's gradients, zeroed, beside the sums (bf16_optimizer.py, clear_lp_grads). Stage 1 in fp16, or offloaded,
    has this rank's partition of the sums beside all of them (stage_1_and_2.py, _build_compact_grad_partition_buffer),
    which is all that stage 2 has, and keeps on the GPU where the optimizer is offloaded.
    """
    if shape.zero_stage >= 2:
        return trained * 4 // share
    if size == 4:
        return trained * 4
    if shape.zero_stage == 0 or _is_bf16_optimizer(shape):
        return trained * (4 + size)
    return trained * 4 + trained * 4 // share


def _buckets(shape: Shape, trained: int, size: int, passing: int) -> int:
    """Bytes for what is exchanged between ranks, beside the `passing` ones of a forward and backward pass.

    Two buckets: of sums in stage 1, of the pass's gradients above. The BF16_Optimizer has none: when activations are
    gone it rounds all sums for their exchange (engine.py, allreduce_bucket).
    """
    if shape.zero_stage == 0:
        return 0
    if _is_bf16_optimizer(shape):
        return max(0, trained * size - passing)
    each = 4 if shape.zero_stage == 1 else size
    return 2 * min(trained, _BUCKET_ELEMENTS[shape.accelerator]) * each


def _of_one(model: ModelFacts, shape: Shape, elements: int) -> int:
    """Those that one rank has where layers are shared: norms are whole, and an embedding that is not the head too."""
    if shape.tensor_ranks == 1:
        return elements
    whole = (2 * model.layers + 1) * model.hidden_size
    whole += 0 if model.tied_embeddings else model.vocabulary_size * model.hidden_size
    return min(whole, elements) + max(0, elements - whole) // shape.tensor_ranks


def _trained(model: ModelFacts, shape: Shape) -> int:
    """Elements of the parameters that are updated."""
    if shape.lora_rank is None:
        return model.parameters if model.trained_parameters is None else model.trained_parameters
    magnitudes = model.layers * activations.linear_outputs(model) if shape.dora else 0
    rows = 0
    if model.added_tokens is not None:
        rows = model.added_tokens.count * model.hidden_size * (1 if model.tied_embeddings else 2)
    return model.lora_parameters_per_rank * shape.lora_rank + magnitudes + rows


def _gathered(model: ModelFacts) -> int:
    """Elements that ZeRO-3 holds whole at a time: two layers (one is prefetched), or the embeddings."""
    layer = (model.parameters - model.embedding_parameters) // max(model.layers, 1)
    return max(2 * layer, model.embedding_parameters)
