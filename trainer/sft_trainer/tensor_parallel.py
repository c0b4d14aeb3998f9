"""Every layer over several ranks: tensor parallelism (https://arxiv.org/abs/1909.08053), as DeepSpeed's AutoTP has it.

The ranks of a group read the same batches. Each has a share of the heads of attention, of the width of an MLP, of the
vocabulary of the output layer; norms are whole everywhere, and so are embeddings that are not the output layer's. Two
sums over the group, a layer and pass, put the shares together: a group belongs into one node, and does lie in one, as
its ranks follow one another. DeepSpeed replaces the layers as the engine starts, reduces gradients over the ranks that
have the same share, and counts what is whole once in the gradient norm. What it lacks is ours: a loss for which no rank
has the logits of the whole vocabulary, and the whole model again for the export.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from deepspeed.checkpoint.constants import DS_AUTOTP_UC_META
from deepspeed.module_inject.layers import LinearLayer, VocabParallelLinear
from deepspeed.utils import groups

from sft_trainer import head
from sft_trainer.softmax import Share


def settings(size: int) -> dict[str, Any]:
    """DeepSpeed's configuration. What is cut how is the model's own plan, which it has from transformers."""
    return {"autotp_size": size}


def complete(engine: Any) -> None:
    """After DeepSpeed: an output layer which it leaves with a share of the logits gives all of them, as any other.

    Its comparison of the first batch is left out: ranks that share layers read one `Plan`. On GPUs it would unpickle
    what the first rank of a group sends on that rank's own GPU, where each of the others then holds a CUDA context.
    """
    for module in engine.module.modules():
        if isinstance(module, VocabParallelLinear):
            module.gather_output = True
    engine.first_dataloader_check.remove()
    engine.first_dataloader_check = None


class SharedLossHead(head.Asked, LinearLayer):  # type: ignore[misc]
    """An output layer of which each rank has the weights of a part of the vocabulary."""

    def tensors(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Weight and bias."""
        return self.weight, self.bias

    def share(self) -> Share:
        """The part that they are."""
        return Share(self.mp_group, self._partition_sizes, self.tp_index)


class TiedLossHead(SharedLossHead, VocabParallelLinear):  # type: ignore[misc]
    """The same where it is the embeddings too."""


head.KINDS.update({LinearLayer: SharedLossHead, VocabParallelLinear: TiedLossHead})


def whole_state(model: Any, keep: bool) -> dict[str, torch.Tensor]:
    """Like `model.state_dict()`, with whole tensors, on the CPU; empty ones where they are not to `keep`. Collective."""
    state: dict[str, torch.Tensor] = {}
    tied: dict[int, torch.Tensor] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in tied:
            whole = _whole(tensor).detach()
            tied[id(tensor)] = whole.cpu() if keep else whole.new_empty(0)
        state[name] = tied[id(tensor)]
    return state


def _whole(tensor: torch.Tensor) -> torch.Tensor:
    """Of a parameter the shares of all ranks of the group put together."""
    cut = getattr(tensor, DS_AUTOTP_UC_META, None)
    if cut is None or cut["replicated"]:
        return tensor
    dimension, sizes = cut["partition_dim"], cut["partition_sizes"]
    shape = list(tensor.shape)
    shape[dimension] = max(sizes)
    padded = tensor.new_zeros(shape)
    padded.narrow(dimension, 0, tensor.shape[dimension]).copy_(tensor.detach())
    shares = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(shares, padded, group=groups.get_tensor_model_parallel_group())
    return torch.cat([s.narrow(dimension, 0, n) for s, n in zip(shares, sizes, strict=True)], dim=dimension)
