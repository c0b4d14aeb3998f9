"""Attention within each document of a pack, without computing one document against another.

transformers keeps packed documents apart by a mask over the whole pack: every pair of documents is computed and
then thrown away, which for ten documents to a pack is ten times the work. Here every document is one call of
SDPA. An attention function sees what FlashAttention's variable-length kernels see (position ids, the window), so
that architectures which support those are the ones that can do this; selfcheck.py compares before it is used.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from typing import Any, cast

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

Output = tuple[torch.Tensor, None]  # attention, and the probabilities that SDPA does not give
PER_DOCUMENT = "sdpa_per_document"
_SMALLEST_BLOCK = 512  # queries of one call, where the window is shorter: calls have a price of their own
_MASKS = {"full_attention", "sliding_attention"}  # the kinds that are the same seen from within a document


def use_per_document(model: Any) -> bool:
    """Make `model` (of transformers or peft) attend document by document; False where it cannot, or need not.

    It cannot where its attention does more than SDPA does with a causal mask or a window.
    """
    config: Any = getattr(model, "config", None)
    kinds = set(getattr(config, "layer_types", None) or _MASKS)
    if getattr(config, "_attn_implementation", None) != "sdpa" or not kinds <= _MASKS:
        return False
    if not model._supports_flash_attn or getattr(config, "attention_chunk_size", None):
        return False
    AttentionInterface.register(PER_DOCUMENT, _attend)
    AttentionMaskInterface.register(PER_DOCUMENT, _mask)
    model.set_attn_implementation(PER_DOCUMENT)
    return bool(config._attn_implementation == PER_DOCUMENT)


def use_masked(model: Any) -> None:
    """The opposite: transformers' own SDPA attention."""
    model.set_attn_implementation("sdpa")


def _mask(*args: Any, attention_mask: torch.Tensor | None = None, **kwargs: Any) -> torch.Tensor | None:
    """None for packed rows, whose documents the position ids tell; the usual mask for padded ones."""
    return None if attention_mask is None else sdpa_mask(*args, attention_mask=attention_mask, **kwargs)


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
    if attention_mask is not None or position_ids is None:
        return cast(Output, sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs))
    lengths = _lengths_of_rows(position_ids)
    if len(lengths) < query.shape[0]:
        lengths = lengths * query.shape[0]
    rows = []
    for sizes, *heads in zip(
        lengths, *(torch.split(tensor, 1) for tensor in (query, key, value)), strict=True
    ):
        documents = zip(*(torch.split(tensor, sizes, dim=2) for tensor in heads), strict=True)
        outputs = [
            sdpa_attention_forward(module, *block, **kwargs)[0]
            for q, k, v in documents
            for block in _blocks(q, k, v, sliding_window)
        ]
        rows.append(torch.cat(outputs, dim=1))
    return torch.cat(rows), None


@functools.lru_cache(maxsize=2)
def _lengths_of_rows(positions: torch.Tensor) -> list[list[int]]:
    """Of positions [B or 1, T]: the same tensor for every layer of a pass, and on a GPU each look waits for it."""
    return [document_lengths(row) for row in positions]


def document_lengths(positions: torch.Tensor) -> list[int]:
    """Lengths of the documents of one sequence, positions [T]: a new one begins where they do not go on."""
    starts = torch.nonzero(torch.diff(positions) != 1).flatten() + 1
    edges = [0, *starts.tolist(), len(positions)]
    return [end - start for start, end in itertools.pairwise(edges)]


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
