"""One sequence over several ranks: Ulysses (https://arxiv.org/abs/2309.14509).

Each rank of a group has its own part of the positions of every sequence, and computes everything but attention there
alone. Attention needs all positions, but every head by itself: for it the ranks exchange, so that each has all
positions of its share of the heads, and back. What a rank keeps for the backward pass is then one part of a sequence,
and every gradient is a sum over ranks, as it is with whole sequences on each. Ranks of a group follow one another, so
that a group lies in one node wherever it fits there.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.distributed as dist
from transformers import AttentionInterface, AttentionMaskInterface

from sft_trainer import attention, flash
from sft_trainer.distributed import COMPUTING
from sft_trainer.errors import UserError

SPLIT = "split_sequences"
# Attentions of which a head needs nothing but its own queries, keys and values, and positions.
_WITHIN_DOCUMENTS = {attention.PER_DOCUMENT, flash.AT_ONCE}
_FIELD = "deepspeed.sequenceParallelSize"
# Their frequencies depend on the longest position of a pass, which may lie on another rank.
_MOVING_ROTATIONS = {"dynamic", "longrope"}


@dataclass(frozen=True)
class Group:
    """The ranks which share sequences; the i-th of them has the i-th part of the positions."""

    size: int
    ranks: dist.ProcessGroup


def join(size: int) -> Group | None:
    """This rank's group of `size` consecutive ranks; None where every rank has whole sequences. Collective."""
    if size == 1:
        return None
    own, _ = dist.new_subgroups(size, timeout=COMPUTING)
    return Group(size, own)


def use(model: Any, group: Group) -> None:
    """Let `model` (of transformers or peft) attend as it does, but over sequences of which each rank has a part.

    Raises:
        UserError: its attention cannot.
    """
    config: Any = getattr(model, "config", None)
    used = getattr(config, "_attn_implementation", None)
    if used not in _WITHIN_DOCUMENTS:
        raise unsupported("its attention is neither FlashAttention nor SDPA with a causal mask or a window")
    if _rotations(config) & _MOVING_ROTATIONS:
        for module in model.modules():
            if hasattr(module, "original_inv_freq"):
                _rotate_whole(module, group)
    AttentionInterface.register(SPLIT, functools.partial(_attend, group, AttentionInterface()[used]))
    AttentionMaskInterface.register(SPLIT, AttentionMaskInterface()[used])
    model.set_attn_implementation(SPLIT)


def unsupported(why: str) -> UserError:
    """What is said of a model whose sequences cannot be split."""
    return UserError(
        "SequenceParallelUnsupported",
        f"{_FIELD}: this model cannot have its sequences split over ranks: {why}; set it to 1, and save memory by "
        "deepspeed.activationCheckpointing: Full, zeroStage: 3 or a smaller data.maxLength instead",
    )


def _rotations(config: Any) -> set[Any]:
    """Kinds of rotary embedding: one, or one for each kind of layer."""
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    stated = getattr(text, "rope_parameters", None) or {}
    return {part.get("rope_type") for part in (stated, *stated.values()) if isinstance(part, dict)}


def _rotate_whole(rotary: torch.nn.Module, group: Group) -> None:
    """Let a rotary embedding of transformers see the positions of all ranks, and give this rank's angles."""

    def before(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        if "position_ids" in kwargs:
            return args, {**kwargs, "position_ids": whole(kwargs["position_ids"], group)}
        return (args[0], whole(args[1], group), *args[2:]), kwargs

    def after(module: Any, args: Any, angles: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        return tuple(own_part(each, group) for each in angles)

    rotary.register_forward_pre_hook(before, with_kwargs=True)
    rotary.register_forward_hook(after)


def whole(positions: torch.Tensor, group: Group | None) -> torch.Tensor:
    """The positions [B, T] of which this rank has [B, T / size]. Collective; once a pass, all layers ask the same."""
    return positions if group is None else _gathered(positions, group)


def own_part(whole: torch.Tensor, group: Group | None) -> torch.Tensor:
    """Of [B, T, ...] this rank's columns."""
    return whole if group is None else whole.chunk(group.size, dim=1)[dist.get_rank(group.ranks)]


@functools.lru_cache(maxsize=2)
def _gathered(positions: torch.Tensor, group: Group) -> torch.Tensor:
    parts = [torch.empty_like(positions) for _ in range(group.size)]
    dist.all_gather(parts, positions.contiguous(), group=group.ranks)
    return torch.cat(parts, dim=1)


class _OwnHeads:
    """The attention module, with as many queries to a key as this rank has of them."""

    def __init__(self, module: torch.nn.Module, query: torch.Tensor, key: torch.Tensor) -> None:
        self._module, self.num_key_value_groups = module, query.shape[1] // key.shape[1]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


def _attend(
    group: Group,
    inner: Callable[..., Any],
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    position_ids: torch.Tensor | None = None,
    **kwargs: Any,
) -> attention.Output:
    """Of this rank's positions: query [B, H, T / size, D], key and value [B, KV, T / size, D]."""
    if attention_mask is not None or position_ids is None:
        raise unsupported("its attention is not told where documents begin")
    key, value = (_enough_heads(heads, query.shape[1], group.size) for heads in (key, value))
    query, key, value = _to_heads([query, key, value], group)
    own = _OwnHeads(module, query, key)
    positions = whole(position_ids, group)
    result, _ = inner(own, query, key, value, None, position_ids=positions, **kwargs)
    return _to_positions(result, group), None


def _enough_heads(heads: torch.Tensor, queries: int, size: int) -> torch.Tensor:
    """Keys or values [B, KV, ...], repeated where there are fewer heads than ranks."""
    found = heads.shape[1]
    if queries % size or (found % size and size % found):
        raise UserError(
            "SequenceParallelUnsupported",
            f"{_FIELD} is {size}, but this model has {queries} attention heads and {found} of keys and values: it must "
            "divide the former, and divide or be a multiple of the latter",
        )
    return heads if found % size == 0 else heads.repeat_interleave(size // found, dim=1)


def _to_heads(parts: Sequence[torch.Tensor], group: Group) -> list[torch.Tensor]:
    """All positions of this rank's heads, [B, H / size, T, D], of all heads of its positions; in one message."""
    split = [_in_parts(part, group.size) for part in parts]  # [size, B, h, t, D]
    message = torch.cat([part.flatten(1) for part in split], dim=1)
    received = torch.split(exchange(message, group), [part[0].numel() for part in split], dim=1)
    return [
        flat.view(part.shape).permute(1, 2, 0, 3, 4).flatten(2, 3)
        for flat, part in zip(received, split, strict=True)
    ]


def _to_positions(attended: torch.Tensor, group: Group) -> torch.Tensor:
    """All heads of this rank's positions, [B, T / size, H, D], of its heads at all positions [B, T, h, D]."""
    split = _in_parts(attended, group.size)  # [size, B, t, h, D]
    received = exchange(split.contiguous(), group)
    return received.permute(1, 2, 0, 3, 4).flatten(2, 3)


def _in_parts(tensor: torch.Tensor, size: int) -> torch.Tensor:
    """[B, size x n, ...] as [size, B, n, ...]."""
    return tensor.reshape(len(tensor), size, -1, *tensor.shape[2:]).movedim(1, 0)


def exchange(rows: torch.Tensor, group: Group) -> torch.Tensor:
    """Row i [size, ...] goes to the i-th rank of the group, which gets it as the row of the sender's number."""
    return cast(torch.Tensor, _Exchange.apply(rows, group))


class _Exchange(torch.autograd.Function):
    """Its gradient is the same exchange: what came from a rank goes back to it."""

    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor, group: Group) -> torch.Tensor:
        ctx.group = group
        return _exchanged(rows, group)

    @staticmethod
    def backward(ctx: Any, *outputs: torch.Tensor) -> tuple[torch.Tensor, None]:
        return _exchanged(outputs[0].contiguous(), ctx.group), None


def _exchanged(rows: torch.Tensor, group: Group) -> torch.Tensor:
    received = torch.empty_like(rows)
    dist.all_to_all_single(received, rows, group=group.ranks)
    return received
