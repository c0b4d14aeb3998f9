"""Attention within each document of a pack, without computing one document against another.

transformers keeps packed documents apart by a mask over the whole pack: every pair of documents is computed and
then thrown away, which for ten documents to a pack is ten times the work. Here every document is one call of
SDPA; flash.py has all of them in one call. An attention function sees what FlashAttention's variable-length kernels
see (position ids or padding, the window), so that architectures which support those are the ones that can do this;
selfcheck.py compares before it is used.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from sft_trainer import upcast

Output = tuple[torch.Tensor, None]  # attention, and the probabilities that these do not give
PER_DOCUMENT = "sdpa_per_document"
_SMALLEST_BLOCK = 512  # queries of one call, where the window is shorter: calls have a price of their own
_MASKS = {"full_attention", "sliding_attention"}  # the kinds that are the same seen from within a document


def use_per_document(model: Any) -> bool:
    """Make `model` (of transformers or peft) attend document by document; False where it cannot, or need not.

    It cannot where its attention does more than SDPA does with a causal mask or a window.
    """
    if implementation(model) != "sdpa" or not sees_documents(model):
        return False
    use(model, PER_DOCUMENT, _attend)
    return implementation(model) == PER_DOCUMENT


def sees_documents(model: Any) -> bool:
    """Whether the attention of `model` depends on nothing but what is within a document."""
    config: Any = getattr(model, "config", None)
    kinds = set(getattr(config, "layer_types", None) or _MASKS)
    chunks = getattr(config, "attention_chunk_size", None)
    return bool(getattr(model, "_supports_flash_attn", False)) and kinds <= _MASKS and not chunks


def implementation(model: Any) -> str | None:
    """What transformers calls the attention in use."""
    return getattr(getattr(model, "config", None), "_attn_implementation", None)


def use(model: Any, name: str, function: Callable[..., Output] | None = None) -> None:
    """Let `model` attend by `function`, which gets to know padding as it came; without one by the library's `name`.

    No name of ours may contain `flash`: transformers would load its own kernels for it.
    """
    if function is not None:
        AttentionInterface.register(name, function)
        AttentionMaskInterface.register(name, _mask)
    model.set_attn_implementation(name)


def _mask(*args: Any, attention_mask: torch.Tensor | None = None, **kwargs: Any) -> torch.Tensor | None:
    """Which tokens are real, bool [B, T], of padded rows; None for packed rows, whose position ids say enough."""
    return attention_mask


def _attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    position_ids: torch.Tensor | None = None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> Output:
    """Of query [B, H, T, D], key and value [B, KV, T, D], positions [B or 1, T]; the result is [B, T, H, D]."""
    lengths = _lengths_of_rows(told(query, attention_mask, position_ids))
    if len(lengths) < query.shape[0]:
        lengths = lengths * query.shape[0]
    rows = []
    for sizes, *heads in zip(
        lengths, *(torch.split(tensor, 1) for tensor in (query, key, value)), strict=True
    ):
        documents = zip(*(torch.split(tensor, sizes, dim=2) for tensor in heads), strict=True)
        outputs = [
            upcast.computed(functools.partial(_sdpa, module, mask, kwargs), *block)
            for q, k, v in documents
            for *block, mask in _blocks(q, k, v, sliding_window)
        ]
        rows.append(torch.cat(outputs, dim=1))
    return torch.cat(rows), None


def _sdpa(
    module: torch.nn.Module,
    mask: torch.Tensor | None,
    options: dict[str, Any],
    *heads: torch.Tensor,
) -> torch.Tensor:
    output: torch.Tensor = sdpa_attention_forward(module, *heads, mask, **options)[0]
    return output


def told(
    query: torch.Tensor, attention_mask: torch.Tensor | None, position_ids: torch.Tensor | None
) -> torch.Tensor:
    """What tells documents apart: padding bool [B, T] where there is some, else positions int64 [B or 1, T]."""
    if attention_mask is not None:
        return attention_mask
    if position_ids is not None:
        return position_ids
    return torch.arange(query.shape[2], device=query.device)[None]


@functools.lru_cache(maxsize=4)
def _lengths_of_rows(rows: torch.Tensor) -> list[list[int]]:
    """Of what is told: the same tensor for every layer of a pass, and on a GPU each look waits for it."""
    return [document_lengths(row) for row in rows]


def document_lengths(row: torch.Tensor) -> list[int]:
    """Lengths of the documents of one sequence: a new one begins where positions int64 [T] do not go on.

    Or where padding bool [T] begins or ends: what is computed there is a document of its own, which nobody reads.
    """
    starts = torch.nonzero(begins(row)).flatten() + 1
    edges = [0, *starts.tolist(), len(row)]
    return [end - start for start, end in itertools.pairwise(edges)]


def begins(told: torch.Tensor) -> torch.Tensor:
    """For all but the first position of [..., T], bool [..., T - 1]: whether a document begins here."""
    return torch.diff(told) != (0 if told.dtype == torch.bool else 1)


def _blocks(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, window: int | None
) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None]]:
    """A document in the pieces in which it is computed, with their masks; None: plain causal attention, in one piece.

    A document longer than the window is cut into blocks of queries with the keys that these can see, so that time and
    memory grow with its length and not with the square.
    """
    length = query.shape[2]
    if window is None or length <= window:
        yield query, key, value, None
        return
    size = max(window, _SMALLEST_BLOCK)
    for start in range(0, length, size):
        end, first = min(start + size, length), max(0, start - window + 1)
        mask = _band(start, end, first, window, query.device)
        yield query[:, :, start:end], key[:, :, first:end], value[:, :, first:end], mask


def _band(start: int, end: int, first: int, window: int, device: torch.device) -> torch.Tensor:
    """Which keys, `first` to `end`, the queries `start` to `end` see: bool [1, 1, queries, keys]."""
    distance = torch.arange(start, end, device=device)[:, None] - torch.arange(first, end, device=device)
    return ((distance >= 0) & (distance < window))[None, None]
