"""Turns rows of the token cache into the tensors of one forward pass.

Packed sequences carry position ids which restart at every document and no attention mask: that is how
transformers keeps documents apart. Padding is told by length, never by token id, because many tokenizers use
their end-of-turn token as padding.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from sft_trainer.batches import MicroBatch

IGNORED = -100  # no loss at this position


class Rows(Protocol):
    """One split of the token cache."""

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of every row."""
        ...

    def row(self, index: int) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """Token ids, and how much each counts in the loss, 0 = not supervised."""
        ...


@dataclass(frozen=True)
class Batch:
    """Tensors of a micro-batch of B sequences, T positions. `targets[b, t]` is the token after position t."""

    input_ids: torch.Tensor  # int64 [B, T]
    targets: torch.Tensor  # int64 [B, T], IGNORED where there is no loss
    position_ids: torch.Tensor | None  # int64 [B, T], packed only
    attention_mask: torch.Tensor | None  # int64 [B, T], padded only
    tokens: int  # real tokens
    padding: int  # positions computed for nothing
    supervised: int  # positions with loss
    pairs: int = 0  # of positions of one document: what attention has to look at
    weights: torch.Tensor | None = (
        None  # fp32 [B, T], of the targets, 0 where there is no loss; None: all are 1
    )

    @property
    def weight(self) -> float:
        """Sum of the weights of all positions with loss: what the sum of losses is divided by."""
        return self.supervised if self.weights is None else float(self.weights.sum(dtype=torch.float64))

    def inputs(self) -> dict[str, torch.Tensor | bool]:
        """Keyword arguments of the model."""
        inputs: dict[str, torch.Tensor | bool] = {"input_ids": self.input_ids, "use_cache": False}
        if self.position_ids is not None:
            inputs["position_ids"] = self.position_ids
        if self.attention_mask is not None:
            inputs["attention_mask"] = self.attention_mask
        return inputs

    def to(self, device: torch.device) -> Batch:
        """The same on `device`, copied while the device goes on computing where the memory is pinned."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def pinned(self) -> Batch:
        """The same in memory from which a GPU can copy by itself."""
        return self._each(torch.Tensor.pin_memory)

    def _each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Batch:
        values = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        changed: dict[str, Any] = {k: change(v) for k, v in values.items() if isinstance(v, torch.Tensor)}
        return replace(self, **changed)


def collate(batch: MicroBatch, rows: Rows, device: torch.device, *, packed: bool) -> Batch:
    """The tensors of `batch`, or of its part of the positions. An empty one becomes two tokens without loss."""
    sequences: list[list[Document]] = [[rows.row(row) for row in pack] for pack in batch.packs]
    if not sequences:
        sequences = [[(np.zeros(2, np.int64), np.zeros(2))]]
    whole = _laid_out(sequences, batch.parts)
    width = whole.ids.shape[1] // batch.parts
    mine = slice(batch.part * width, (batch.part + 1) * width)
    own = _Layout._make(np.ascontiguousarray(array[:, mine]) for array in whole)
    pairs = sum(len(ids) * (len(ids) + 1) // 2 for documents in sequences for ids, _ in documents)
    share = pairs * (batch.part + 1) // batch.parts - pairs * batch.part // batch.parts
    is_dummy = not batch.packs
    return _tensors(own, device, packed=packed, pairs=0 if is_dummy else share, dummy=is_dummy)


Document = tuple[NDArray[np.integer], NDArray[np.floating]]


class _Layout(NamedTuple):
    """Arrays [B, T] of a micro-batch, or of a part of its positions."""

    ids: NDArray[np.int64]
    targets: NDArray[np.int64]
    positions: NDArray[np.int64]
    real: NDArray[np.int64]
    weights: NDArray[np.float32]


def _laid_out(sequences: list[list[Document]], parts: int) -> _Layout:
    """One sequence to a row, as wide as the longest, and so that it can be cut into `parts`."""
    longest = max(sum(len(ids) for ids, _ in documents) for documents in sequences)
    shape = (len(sequences), -(-longest // parts) * parts)
    ids, targets = np.zeros(shape, np.int64), np.full(shape, IGNORED, np.int64)
    positions, real = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    weights = np.zeros(shape, np.float32)
    for index, documents in enumerate(sequences):
        start = 0
        for tokens, each in documents:
            end = start + len(tokens)
            ids[index, start:end] = tokens
            targets[index, start : end - 1] = np.where(each[1:] > 0, tokens[1:], IGNORED)
            weights[index, start : end - 1] = each[1:]
            positions[index, start:end] = np.arange(len(tokens))
            real[index, start:end] = 1
            start = end
        positions[index, start:] = np.arange(shape[1] - start)  # padding is one more document of its own
    return _Layout(ids, targets, positions, real, weights)


def _tensors(own: _Layout, device: torch.device, *, packed: bool, pairs: int, dummy: bool) -> Batch:
    count = 0 if dummy else int(own.real.sum())
    supervised = own.targets != IGNORED
    is_even = bool((own.weights[supervised] == 1).all())
    return Batch(
        input_ids=torch.from_numpy(own.ids).to(device),
        targets=torch.from_numpy(own.targets).to(device),
        position_ids=torch.from_numpy(own.positions).to(device) if packed else None,
        attention_mask=None if packed else torch.from_numpy(own.real).to(device),
        tokens=count,
        padding=own.ids.size - count,
        supervised=int(supervised.sum()),
        pairs=pairs,
        weights=None if is_even else torch.from_numpy(own.weights).to(device),
    )
