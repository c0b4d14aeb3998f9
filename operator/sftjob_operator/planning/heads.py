"""Which numbers of ranks can share a model: around attention each has its share of the heads."""

from __future__ import annotations

from sft_trainer.config import ModelFacts

SHARED = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")
"""Architectures of which it is tested that ranks which share layers compute what one does (tests/trainer)."""


def indivisible(model: ModelFacts, sequence_ranks: int, tensor_ranks: int) -> str | None:
    """Why so many ranks cannot share sequences, or layers, of this model; None where they can."""
    groups = model.key_value_heads or model.heads
    if tensor_ranks > 1 and model.architecture not in SHARED:
        return (
            f"spec.deepspeed.tensorParallelSize is {tensor_ranks}, but {model.architecture} is not one whose layers ranks "
            f"can share: {', '.join(SHARED)}; remove it, ZeRO stage 3 parts the weights of any model"
        )
    numbers = range(1, model.heads + 1)
    shares = {
        "sequence": (sequence_ranks, [n for n in numbers if _share_heads(model.heads, groups, n)]),
        "tensor": (tensor_ranks, [n for n in numbers if _cut(model, groups, n)]),
    }
    for kind, (ranks, fitting) in shares.items():
        if ranks not in fitting:
            return (
                f"spec.deepspeed.{kind}ParallelSize is {ranks}, but {model.architecture} has {model.heads} attention heads "
                f"and {groups} of keys and values, which so many ranks cannot share; {', '.join(map(str, fitting))} can"
            )
    return None


def _share_heads(heads: int, groups: int, ranks: int) -> bool:
    """Sequences (sft_trainer.sequence_parallel): keys and values are repeated where there are fewer than ranks."""
    return heads % ranks == 0 and (groups % ranks == 0 or ranks % groups == 0)


def _cut(model: ModelFacts, groups: int, ranks: int) -> bool:
    """Layers (sft_trainer.tensor_parallel): every rank has weights of its own."""
    return groups % ranks == 0 and model.heads % ranks == 0 and model.intermediate_size % ranks == 0
