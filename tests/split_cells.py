"""What the ranks of a gang compute on sequences they share, beside the same on whole ones; see test_sequence_parallel."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import transformers

import gang
import gradient_cells
from kept_bytes import kept
from sft_trainer import attention, loop, sequence_parallel
from sft_trainer import engine as engines
from sft_trainer.config import TrainConfig
from sft_trainer.distributed import World

LENGTHS = [
    [5, 30, 1, 12],
    [20, 28],
]  # two packs of 48 tokens, so that no number of ranks cuts where documents end
SMALL: dict[str, Any] = {
    "vocab_size": 50,
    "hidden_size": 64,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "max_position_embeddings": 64,
    **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"), 0),
}


def network(kind: str, **more: Any) -> Any:
    """A small random model, the same wherever it is made."""
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(kind, **{**SMALL, **more})
    return transformers.AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").train()


def differences(world: World, cases: dict[str, tuple[str, dict[str, Any], int]]) -> dict[str, list[float]]:
    """Of each case (architecture, its settings, ranks that share): how far logits and gradients are off, relatively."""
    return {name: _difference(*case) for name, case in cases.items()}


def _difference(kind: str, settings: dict[str, Any], size: int) -> list[float]:
    more = dict(settings)
    checkpointing, together = more.pop("checkpointing", False), more.pop("together", False)
    model, group = network(kind, **more), sequence_parallel.join(size)
    assert group is not None
    ids = torch.randint(1, 50, (2, 48), generator=torch.Generator().manual_seed(1))
    positions = torch.stack([torch.cat([torch.arange(n) for n in row]) for row in LENGTHS])
    factors = torch.linspace(-1, 1, 2 * 48 * 50).reshape(2, 48, 50)
    inputs = {"input_ids": ids, "position_ids": positions}
    if together:  # a document's angles depend on the longest of the pass
        assert attention.use_per_document(model)
        alone = model(**inputs, use_cache=False).logits
    else:
        alone = torch.cat(
            [
                model(input_ids=document[None], use_cache=False).logits[0]
                for row, lengths in zip(ids, LENGTHS, strict=True)
                for document in row.split(lengths)
            ]
        ).reshape(factors.shape)
    (alone * factors).sum().backward()
    expected = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    assert together or attention.use_per_document(model)
    sequence_parallel.use(model, group)
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    mine = {name: sequence_parallel.own_part(each, group) for name, each in inputs.items()}
    logits = model(**mine, use_cache=False).logits
    (logits * sequence_parallel.own_part(factors, group)).sum().backward()
    found = [parameter.grad for parameter in model.parameters()]
    for gradient in found:
        dist.all_reduce(gradient, group=group.ranks)
    off = float((logits - sequence_parallel.own_part(alone, group)).abs().max() / alone.abs().max())
    return [off, max(_relative(one, other) for one, other in zip(found, expected, strict=True))]


def _relative(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).norm() / other.norm().clamp(min=1e-6))


def kept_bytes(world: World, length: int) -> list[int]:
    """What a forward pass keeps for the backward pass, parameters aside: with whole sequences, and with shared ones."""
    model, group = (
        network("llama", hidden_size=256, intermediate_size=512),
        sequence_parallel.join(world.size),
    )
    assert group is not None
    assert attention.use_per_document(model)
    inputs = {
        "input_ids": torch.ones(1, length, dtype=torch.long),
        "position_ids": torch.arange(length)[None],
    }
    whole = _kept(model, inputs)
    sequence_parallel.use(model, group)
    return [whole, _kept(model, {k: sequence_parallel.own_part(each, group) for k, each in inputs.items()})]


def _kept(model: Any, inputs: dict[str, torch.Tensor]) -> int:
    return kept(model, lambda: model.model(**inputs, use_cache=False))


def long_step(world: World, volume: str, length: int) -> dict[str, float]:
    """Loss and gradient norm of one optimizer step on the only sequence of that length, over all ranks."""
    engines.prepare("cpu")
    changes = {
        "data__maxLength": length,
        "training__globalBatchSize": 1,
        "training__gradientAccumulationSteps": 1,
        "training__maxSteps": 1,
        "deepspeed__zeroStage": 0 if world.size == 1 else 2,
        "deepspeed__sequenceParallelSize": world.size,
    }
    config = TrainConfig.model_validate(gang.Job(Path(volume), world.size, changes).config())
    parts = gradient_cells.parts_of(config, world, Path(volume), packed=True)
    own = loop.optimizer_step(parts, gradient_cells.batches(parts, 0), 1e-3)
    loss, weight, tokens = world.sum([own.loss_sum, own.weight, own.tokens])
    return {"loss": loss / weight, "norm": own.norm, "tokens": tokens}
