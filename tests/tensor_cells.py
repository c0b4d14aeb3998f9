"""What ranks which share layers compute, beside one process with whole ones; see test_tensor_parallel."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
import transformers

import gradient_cells
import tiny
from sft_trainer.distributed import World
from sft_trainer.head import linear_cross_entropy
from sft_trainer.softmax import Objective, Share

SHAPE: dict[str, Any] = {
    "vocab_size": 259,  # in no equal parts
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"), 257),
}


def workspace(root: Path, kind: str, tied: bool) -> Path:
    """That of gradient_cells, with a small model of this architecture; norms and biases are not those of a start."""
    tiny.model(root / "models" / "tiny")
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(kind, **SHAPE, tie_word_embeddings=tied)
    network = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += torch.randn_like(parameter) * 0.05
    (root / "models" / "tiny" / "model.safetensors").unlink()
    network.save_pretrained(root / "models" / "tiny")
    return gradient_cells.workspace(root)


def steps(world: World, volumes: dict[str, str], cells: list[dict[str, Any]]) -> dict[str, Any]:
    """gradient_cells.two_steps of every model, and how far a shared loss is from a whole one."""
    # Of tensors on GPUs it would open a context on the sender's GPU in every rank.
    deepspeed.comm.broadcast_object_list = _refused
    every = {kind: gradient_cells.two_steps(world, volume, cells) for kind, volume in volumes.items()}
    return {"cells": every, "loss": [_loss_off(world, each) for each in OBJECTIVES]}


def _refused(*_: Any, **__: Any) -> None:
    raise AssertionError("DeepSpeed sends Python objects")


OBJECTIVES = (
    Objective(0.7),
    Objective(0.7, label_smoothing=0.1, z_loss=1e-2),
    Objective(0.7, torch.arange(1, 12) / 5),
)


def _loss_off(world: World, objective: Objective) -> float:
    """The largest relative difference of a loss of 11 tokens and its gradients, over all ranks and their shares."""
    sizes = (5, 3, 4, 1)[: world.size]
    random = torch.Generator().manual_seed(3)
    hidden, weight, bias = (
        torch.randn(shape, generator=random) for shape in ((11, 8), (sum(sizes), 8), (sum(sizes),))
    )
    targets = torch.randint(0, sum(sizes), (11,), generator=random)
    share = Share(dist.group.WORLD, sizes, world.rank)
    whole = _gradients([hidden, weight, bias], targets, objective, None)
    parts = [weight.split(sizes)[world.rank], bias.split(sizes)[world.rank]]
    found = _gradients([hidden, *parts], targets, objective, share)
    expected = whole[:2] + [each.split(sizes)[world.rank] for each in whole[2:]]
    off = max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(found, expected, strict=True))
    return max(world.gather(off))


def _gradients(
    tensors: list[torch.Tensor], targets: torch.Tensor, objective: Objective, share: Share | None
) -> list[torch.Tensor]:
    """The loss, and its gradients in hidden states, weights and bias."""
    leaves = [tensor.clone().requires_grad_() for tensor in tensors]
    loss = linear_cross_entropy(*leaves, targets, objective, share)
    loss.backward()
    return [loss.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)]
