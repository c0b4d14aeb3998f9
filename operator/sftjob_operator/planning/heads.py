"""Which numbers of ranks can share the sequences of a model: around attention each has its share of the heads."""

from __future__ import annotations

from sft_trainer.config import ModelFacts


def indivisible(model: ModelFacts, ranks: int) -> str | None:
    """Why `ranks` cannot share sequences of this model; None where they can (sft_trainer.sequence_parallel)."""
    groups = model.key_value_heads or model.heads
    fitting = [n for n in range(1, model.heads + 1) if _share_heads(model.heads, groups, n)]
    if ranks in fitting:
        return None
    return (
        f"spec.deepspeed.sequenceParallelSize is {ranks}, but {model.architecture} has {model.heads} attention heads and "
        f"{groups} of keys and values, which so many ranks cannot share; {', '.join(map(str, fitting))} can"
    )


def _share_heads(heads: int, groups: int, ranks: int) -> bool:
    return heads % ranks == 0 and (groups % ranks == 0 or ranks % groups == 0)
