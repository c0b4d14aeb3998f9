"""Turns rows of the token cache into the tensors of one forward pass.

Packed sequences carry position ids which restart at every document and no attention mask: that is how
transformers keeps documents apart. Padding is told by length, never by token id, because many tokenizers use
their end-of-turn token as padding.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol

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
    """The tensors of `batch`. An empty one becomes two tokens without loss."""
    if not batch.packs:
        return _tensors([[(np.zeros(2, np.int64), np.zeros(2))]], device, packed=packed, dummy=True)
    return _tensors([[rows.row(row) for row in pack] for pack in batch.packs], device, packed=packed)


Document = tuple[NDArray[np.integer], NDArray[np.floating]]


def _tensors(
    sequences: list[list[Document]], device: torch.device, *, packed: bool, dummy: bool = False
) -> Batch:
    width = max(sum(len(ids) for ids, _ in documents) for documents in sequences)
    shape = (len(sequences), width)
    ids, targets = np.zeros(shape, np.int64), np.full(shape, IGNORED, np.int64)
    positions, real, weights = (
        np.zeros(shape, np.int64),
        np.zeros(shape, np.int64),
        np.zeros(shape, np.float32),
    )
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
        positions[index, start:] = np.arange(width - start)  # padding is one more document of its own
    count = 0 if dummy else int(real.sum())
    supervised = targets != IGNORED
    is_even = bool((weights[supervised] == 1).all())
    return Batch(
        input_ids=torch.from_numpy(ids).to(device),
        targets=torch.from_numpy(targets).to(device),
        position_ids=torch.from_numpy(positions).to(device) if packed else None,
        attention_mask=None if packed else torch.from_numpy(real).to(device),
        tokens=count,
        padding=ids.size - count,
        supervised=int(supervised.sum()),
        pairs=0
        if dummy
        else sum(len(i) * (len(i) + 1) // 2 for documents in sequences for i, _ in documents),
        weights=None if is_even else torch.from_numpy(weights).to(device),
    )
