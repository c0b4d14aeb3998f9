"""What a forward pass keeps for the backward pass, counted storage by storage, and which operators run."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode


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


class Watched(TorchDispatchMode):
    """Every operator that runs in here, and the storages that they made."""

    def __init__(self) -> None:
        super().__init__()
        self.ran: list[str] = []
        self._made: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = operator(*args, **(kwargs or {}))
        self.ran.append(operator.name())
        for tensor in torch.utils._pytree.tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                made = StorageWeakRef(storage)
                self._made[made.cdata] = (made, storage.nbytes())
        return result

    def held(self, model: Any) -> int:
        """Bytes of what was made in here and is still there, whoever holds it, without those of `model`."""
        own = {
            StorageWeakRef(each.untyped_storage()).cdata for each in (*model.parameters(), *model.buffers())
        }
        return sum(size for made, size in self._made.values() if not made.expired() and made.cdata not in own)
