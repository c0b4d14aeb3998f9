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
# Architectures that cap their logits unless their configuration says otherwise, and those that scale them: these logits
# exist at all positions.
_CAPPED = ("Gemma2", "Gemma3n", "Gemma4", "NanoChat")
_SCALED = ("Cohere", "Granite", "FalconH1", "MiniCPM", "HyperCLOVAX")
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

    2 norm outputs, attention's projection and the residual (4 hidden), q, k, v and attention's output (4 times the
    queries of all heads: where keys and values have fewer, some kernels repeat them), gate, up, activation and their
    product (4 intermediate); besides two norm inputs in fp32 (2 hidden x 4 bytes).
    Normalised queries and keys are kept in fp32 and normalised. Each of the k experts of a token has a copy of its
    input and an output (2 k hidden), and they have the intermediate elements of all.
    Where ranks share sequences, attention's output is kept twice, for its heads and for its positions, and while a
    layer exchanges there are its q, k and v (3 queries) as sent and as received. Where they share layers, each has its
    part of q, k, v and attention's output, and of the intermediate ones.
    With checkpointing one layer at a time is there in full, and of every layer its input (Full), or its input, q,
    k, v, attention output, the two projections back (3 hidden, 4 queries), gate and up (2 intermediate) (Selective):
    products of experts are computed again.
    """
    tokens, parts, hidden = shape.tokens, shape.tensor_ranks, model.hidden_size
    middle = max(model.intermediate_size, model.experts_intermediate_size)
    queries = _queries(model)
    stored, passing = _pairs_of_tokens(model, shape, size)
    kept_twice = queries if shape.sequence_ranks > 1 else 0
    passing += 6 * tokens * size * kept_twice
    elements = 4 * hidden + (4 * queries + 4 * middle) // parts + kept_twice
    elements += 2 * model.experts_per_token * hidden
    norms = 8 * hidden + _of_head_norms(model, queries, size) // parts
    layer = tokens * (size * elements + norms) + stored
    selected = 3 * hidden + (4 * queries + 2 * model.intermediate_size) // parts
    kept = {"None": 0, "Selective": selected, "Full": hidden}[shape.checkpointing]
    if kept:
        return tokens * model.layers * size * kept + layer + passing
    return model.layers * layer + passing


def _queries(model: ModelFacts) -> int:
    """Elements of a token's queries, of all heads, which need not be the hidden ones where heads have their own size."""
    return model.hidden_size if model.head_size is None else model.heads * model.head_size


def _of_head_norms(model: ModelFacts, queries: int, size: int) -> int:
    """Bytes of a token's queries and keys in fp32, and normalised; 0 where they are taken as they are."""
    if not model.normalised_queries:
        return 0
    return (4 + size) * (queries + queries * (model.key_value_heads or model.heads) // model.heads)


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
    times = _whole_logits(model)
    chunk = times * whole or min(whole, _LOGITS_CHUNK[shape.accelerator])
    head = vocabulary * model.hidden_size
    gradient = head * (size if chunk >= whole else size + 4)
    if shape.lora_rank is not None:
        # of trained rows the whole head's gradient, and peft's copy of it with them in it
        gradient = 0 if model.added_tokens is None else gradient + head * size
        if shape.accelerator == "cpu" and shape.precision == "bf16":
            gradient += head * 4  # the frozen head in fp32, where the CPU has no bf16 (sft_trainer.upcast)
    return chunk + _LOSS_PIECE[shape.accelerator] + gradient


def _whole_logits(model: ModelFacts) -> int:
    """How many tensors of all logits there are at once; 0 where a chunk is enough (sft_trainer.head).

    Capped: their tanh, the capped ones, and the gradient of these, which is written over plain ones only
    (sft_trainer.loss); scaled: the scaled ones and their gradient. Measured: docs/planning.md.
    """
    is_capped = model.capped_logits
    if is_capped is None:
        is_capped = model.architecture.startswith(_CAPPED)
    return 3 if is_capped else 2 if model.architecture.startswith(_SCALED) else 0
