"""Bytes of one forward and backward pass of a rank, from the model's facts: an upper estimate (docs/planning.md).

The counting of Korthikanti et al. (https://arxiv.org/abs/2205.05198, section 4.1) redone for gated MLPs, RMSNorm in
fp32 and attention that stores no scores, or does; the chunk of logits is the trainer's own (sft_trainer.head).
"""

from __future__ import annotations

from sft_trainer.config import ModelFacts
from sftjob_operator.planning.shape import Shape

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


def of_layers(model: ModelFacts, shape: Shape, size: int) -> int:
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


def linear_outputs(model: ModelFacts) -> int:
    """Of a layer's linear layers together: q, k, v, the two projections back; gate and up."""
    return 5 * model.hidden_size + 2 * model.intermediate_size


def of_adapters(model: ModelFacts, shape: Shape, size: int) -> int:
    """What adapters on all linear layers keep for the backward pass, beside what the layers keep themselves.

    Dropout: its result and its mask, of every input (6 hidden, 1 intermediate). DoRA: the results of the layer and of
    the adapter apart; and for a moment the product of the adapter's two matrices, the sum with the weights, and a unit
    matrix, of the largest layer. `Selective` keeps the adapter's results, as those of all matrix products.
    """
    if shape.lora_rank is None:
        return 0
    hidden, middle = model.hidden_size, model.intermediate_size
    outputs, inputs = linear_outputs(model), 6 * hidden + middle
    mask = 1 if shape.accelerator == "gpu" else size
    each = (2 * outputs * size if shape.dora else 0) + (inputs * (size + mask) if shape.lora_dropout else 0)
    layers = model.layers if shape.checkpointing == "None" else 1
    kept = model.layers * outputs * size if shape.checkpointing == "Selective" else 0
    dense = size * (3 * hidden * middle + middle * middle) if shape.dora else 0
    return shape.tokens * (layers * each + kept) + dense


def of_logits(model: ModelFacts, shape: Shape, size: int) -> int:
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
