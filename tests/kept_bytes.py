"""What a forward pass keeps for the backward pass, counted storage by storage."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch


def kept(model: Any, forward: Callable[[], Any]) -> int:
    """Bytes that autograd has saved after `forward`, each storage once, without parameters and buffers of `model`."""
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    saved: list[weakref.ref[torch.Tensor]] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        saved.append(weakref.ref(tensor))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = forward()
    storages = {
        t.untyped_storage().data_ptr(): t.untyped_storage() for ref in saved if (t := ref()) is not None
    }
    del output  # it has kept them
    return sum(storage.nbytes() for address, storage in storages.items() if address not in own)
