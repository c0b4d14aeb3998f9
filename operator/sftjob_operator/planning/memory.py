"""Bytes that one rank needs, from the model's facts: an upper estimate, explained in docs/planning.md.

States: ZeRO (https://arxiv.org/abs/1910.02054, sections 3.1 and 5). Activations: the counting of Korthikanti
et al. (https://arxiv.org/abs/2205.05198, section 4.1) redone for gated MLPs, RMSNorm in fp32 and attention
that stores no scores, or does. The trainer's own: sft_trainer.engine (buckets), sft_trainer.head (a chunk of logits).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sft_trainer.config import Attention, MasterWeights, ModelFacts, Offload, Precision, Recompute

GIB = 2**30
_BUCKET_ELEMENTS = {"gpu": 200_000_000, "cpu": 10_000_000}  # what sft_trainer.engine asks DeepSpeed for
_OVERHEAD = {"gpu": int(1.75 * GIB), "cpu": 1 * GIB}  # CUDA context and NCCL; interpreter and libraries
_HOST = 4 * GIB  # of a rank that computes on a GPU: interpreter, libraries, CUDA's own, data
_LOGITS_CHUNK = {"gpu": 1024 * 2**20, "cpu": 256 * 2**20}  # what sft_trainer.head computes at once
_LOSS_PIECE = {
    "gpu": 3 * 64 * 2**20,
    "cpu": 3 * 4 * 2**20,
}  # fp32 copies of a piece of it, sft_trainer.softmax
# Architectures that scale or cap their logits: these exist at all positions.
_WHOLE_LOGITS = (
    "Gemma2",
    "Gemma3",
    "Gemma4",
    "Cohere",
    "Granite",
    "FalconH1",
    "MiniCPM",
    "NanoChat",
    "HyperCLOVAX",
)
# Architectures that compute nothing between documents and have no windows (tests/trainer/test_models.py); with all
# others a mask over the pack may be there.
_NO_MASK = (
    "LlamaForCausalLM",
    "Qwen2ForCausalLM",
    "Qwen3ForCausalLM",
    "GemmaForCausalLM",
    "PhiForCausalLM",
    "GPTNeoXForCausalLM",
    "GPT2LMHeadModel",
    "OPTForCausalLM",
)
_EAGER = ("Gemma2", "Bloom")  # transformers has nothing but eager attention for them
# Bytes of a weight in four bits: a scale for 64 of them in eight bits, for 256 of those one in fp32 (QLoRA, section 3).
_NF4 = 0.5 + 1 / 64 + 4 / (64 * 256)
_SLACK = {"gpu": 0.08, "cpu": 0.20}  # of everything: fragmentation of the allocator


@dataclass(frozen=True)
class Shape:
    """What the need depends on, beside the model."""

    world_size: int
    zero_stage: int
    micro_batch_size: int
    max_length: int
    checkpointing: Recompute
    precision: Precision
    accelerator: Literal["gpu", "cpu"]
    lora_rank: int | None
    """None = all weights are trained."""
    dora: bool = False
    lora_dropout: bool = False
    offload_optimizer: Offload = "None"
    offload_parameters: Offload = "None"
    master_weights: MasterWeights = "FP32"
    muon: bool = False
    secondary_size: int = 1
    attention: Attention | None = None
    """None = the pods choose."""
    quantised: bool = False
    """The frozen linear layers in four bits (QLoRA)."""
    sequence_ranks: int = 1
    tensor_ranks: int = 1

    @property
    def tokens(self) -> int:
        """Positions of a forward pass of one rank."""
        return self.micro_batch_size * -(-self.max_length // self.sequence_ranks)


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
    largest = model.vocabulary_size * model.hidden_size
    # fp32: the master copy (not where weights are fp32 themselves and nothing is partitioned), two moments
    master = 0 if size == 4 and stage == 0 else 4
    if (
        shape.master_weights != "FP32"
    ):  # a bf16 copy of what stage 2 updates; stage 3 updates the weights themselves
        master = 0 if stage == 3 else 2
    optimizer = trained * (master + 8) // (share if stage >= 1 else 1)
    if shape.muon:  # one moment of hidden matrices, and bf16 and fp32 copies of one of them in its step
        optimizer -= 4 * max(0, trained - model.embedding_parameters)
        optimizer += 12 * model.hidden_size * model.intermediate_size
    gradients = trained * 4 // (share if stage >= 2 else 1)
    host = 0
    if shape.offload_optimizer == "CPU" and shape.accelerator == "gpu":  # on a CPU it is the same memory
        # Beside the optimizer's: fp32 gradients, and the updated weights on their way back to the GPU.
        host = optimizer + trained * (4 + size) // share
        gradients, optimizer = (0 if stage >= 2 else gradients), 0
    if shape.offload_parameters == "CPU" and shape.accelerator == "gpu":
        host += parameters * size // share
        weights = _gathered(model) * size
    bucket = min(trained, _BUCKET_ELEMENTS[shape.accelerator]) * size * 2 if stage >= 1 else 0
    if host:
        bucket += largest * size  # the largest gradient, on its way to the CPU
        # whole on the CPU, before any state is there; QLoRA packs on the GPU what it reads
        loaded = parameters * size if stage < 3 and not shape.quantised else 0
        host = int((max(host, loaded) + _HOST) * (1 + _SLACK["gpu"]))
    logits = _logits(model, shape, size)
    activations = _activations(model, shape, size) + _of_adapters(model, shape, size)
    overhead = _OVERHEAD[shape.accelerator]
    needed = weights + gradients + optimizer + bucket + activations + logits + overhead
    return Memory(
        weights=weights,
        gradients=gradients,
        optimizer=optimizer,
        buffers=bucket,
        activations=activations,
        logits=logits,
        overhead=overhead,
        slack=int(needed * _SLACK[shape.accelerator]),
        host=host,
    )


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
    magnitudes = model.layers * _outputs(model) if shape.dora else 0
    rows = 0
    if model.added_tokens is not None:
        rows = model.added_tokens.count * model.hidden_size * (1 if model.tied_embeddings else 2)
    return model.lora_parameters_per_rank * shape.lora_rank + magnitudes + rows


def _outputs(model: ModelFacts) -> int:
    """Of a layer's linear layers together: q, k, v, the two projections back; gate and up."""
    return 5 * model.hidden_size + 2 * model.intermediate_size


def _of_adapters(model: ModelFacts, shape: Shape, size: int) -> int:
    """What adapters on all linear layers keep for the backward pass, beside what the layers keep themselves.

    Dropout: its result and its mask, of every input (6 hidden, 1 intermediate). DoRA: the results of the layer and of
    the adapter apart; and for a moment the product of the adapter's two matrices, the sum with the weights, and a unit
    matrix, of the largest layer. `Selective` keeps the adapter's results, as those of all matrix products.
    """
    if shape.lora_rank is None:
        return 0
    hidden, middle = model.hidden_size, model.intermediate_size
    outputs, inputs = _outputs(model), 6 * hidden + middle
    mask = 1 if shape.accelerator == "gpu" else size
    each = (2 * outputs * size if shape.dora else 0) + (inputs * (size + mask) if shape.lora_dropout else 0)
    layers = model.layers if shape.checkpointing == "None" else 1
    kept = model.layers * outputs * size if shape.checkpointing == "Selective" else 0
    dense = size * (3 * hidden * middle + middle * middle) if shape.dora else 0
    return shape.tokens * (layers * each + kept) + dense


def _gathered(model: ModelFacts) -> int:
    """Elements that ZeRO-3 holds whole at a time: two layers (one is prefetched), or the embeddings."""
    layer = (model.parameters - model.embedding_parameters) // max(model.layers, 1)
    return max(2 * layer, model.embedding_parameters)


def _logits(model: ModelFacts, shape: Shape, size: int) -> int:
    """A chunk of them, and the gradient of a trained head, which is summed in fp32 if there are more chunks."""
    vocabulary = -(-model.vocabulary_size // shape.tensor_ranks)
    whole = shape.tokens * vocabulary * size
    piece = _LOSS_PIECE[shape.accelerator]
    if model.architecture.startswith(_WHOLE_LOGITS):
        return whole + piece
    chunk = min(whole, _LOGITS_CHUNK[shape.accelerator])
    head = vocabulary * model.hidden_size
    gradient = head * (size if chunk == whole else size + 4)
    if shape.lora_rank is not None:
        # of trained rows the whole head's gradient, and peft's copy of it with them in it
        gradient = 0 if model.added_tokens is None else gradient + head * size
    return chunk + piece + gradient


def _activations(model: ModelFacts, shape: Shape, size: int) -> int:
    """Stored for the backward pass. Per token and layer, in elements of the model's type:

    2 norm outputs, q, k, v, attention output, its projection and the residual (8 hidden), gate, up,
    activation and their product (4 intermediate); besides two norm inputs in fp32 (2 hidden x 4 bytes).
    Where ranks share sequences, attention's output is kept twice, for its heads and for its positions, and while a
    layer exchanges there are its q, k and v (3 hidden) as sent and as received. Where they share layers, each has its part
    of q, k, v and attention's output (4 hidden), and of the intermediate ones.
    With checkpointing one layer at a time is there in full, and of every layer its input (Full), or its input, q,
    k, v, attention output, the two projections back (7 hidden), gate and up (2 intermediate) (Selective).
    """
    tokens = shape.tokens
    hidden, middle = model.hidden_size, model.intermediate_size
    stored, passing = _pairs_of_tokens(model, shape, size)
    kept_twice = hidden if shape.sequence_ranks > 1 else 0
    passing += 6 * tokens * size * kept_twice
    parts = shape.tensor_ranks
    own = (4 * hidden + 4 * middle) // parts
    layer = tokens * (size * (4 * hidden + own + kept_twice) + 8 * hidden) + stored
    selected = 3 * hidden + (4 * hidden + 2 * middle) // parts
    kept = {"None": 0, "Selective": selected, "Full": hidden}[shape.checkpointing]
    if kept:
        return tokens * model.layers * size * kept + layer + passing
    return model.layers * layer + passing


def _pairs_of_tokens(model: ModelFacts, shape: Shape, size: int) -> tuple[int, int]:
    """What grows with the square of the length: of each layer, and for a moment.

    A mask over the pack is there twice, in the model's type (measured). Eager attention stores its probabilities in
    fp32, and in the model's type where that is another; the scores are there once more when they become them. Ranks
    that share sequences have neither.
    """
    if shape.sequence_ranks > 1:
        return 0, 0
    pairs = shape.micro_batch_size * shape.max_length**2
    if shape.attention == "FlashAttention":  # that, or an error
        return 0, 0
    if shape.attention == "Eager" or model.architecture.startswith(_EAGER):
        scores = pairs * model.heads // shape.tensor_ranks
        return scores * (4 if size == 4 else 4 + size), scores * (size + 4)
    return 0 if model.architecture in _NO_MASK else 2 * size * pairs, 0
