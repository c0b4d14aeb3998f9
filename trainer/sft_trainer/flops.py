"""Model FLOPs: the floating-point operations that the mathematics of a step asks for, whoever computes them.

Counted as in PaLM (https://arxiv.org/abs/2204.02311, appendix B), with what a fine-tuning does differently:

- A matrix of n elements costs a token 2n forward, 2n for the gradient of its input, and 2n for its own gradient if it
  is trained. All trained: the well-known 6N. LoRA: 4N, and 6 per element of the adapters.
- The output layer works at positions with loss only. Look-ups in embeddings cost nothing.
- Attention sees what comes before it in the same document: a pair of positions costs 4h forward and 8h backward per
  layer, h = heads times their dimension. (PaLM counts all pairs of a sequence; half of them are never needed.)
- Of a mixture of experts, those that a token is sent to.

Recomputation (activation checkpointing) and padding are no model FLOPs: that is the point of MFU. Too much is counted
where gradients end early (the lower layers frozen), or a layer attends to a window only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import nn


@dataclass(frozen=True)
class Work:
    """FLOPs of one forward and backward pass."""

    per_token: float = 0.0
    per_supervised: float = 0.0
    per_pair: float = 0.0
    """Of two positions of a document, the later of which attends to the earlier."""

    def flops(self, tokens: int, supervised: int, pairs: int) -> float:
        """Of so many real tokens, positions with loss, and pairs of positions."""
        return self.per_token * tokens + self.per_supervised * supervised + self.per_pair * pairs


def work(model: Any) -> Work:
    """What `model`, a transformers or PEFT model in training form, costs; also where ZeRO-3 has partitioned it."""
    head = model.get_output_embeddings()
    share, known = _active_share(model.config), set[int]()
    tables = {
        id(module.weight)
        for module in model.modules()
        if isinstance(module, nn.Embedding) and (head is None or module.weight is not head.weight)
    }
    per_token = per_supervised = 0.0
    for name, parameter in model.named_parameters():
        packed = getattr(parameter, "quant_state", None)  # four bits: two elements a byte
        shape = tuple(
            getattr(parameter if packed is None else packed, "ds_shape", (packed or parameter).shape)
        )
        if len(shape) < 2 or id(parameter) in tables | known:
            continue
        known.add(id(parameter))
        cost = (6 if parameter.requires_grad else 4) * math.prod(shape)
        if head is not None and parameter is head.weight:
            per_supervised += cost
        else:
            per_token += cost * (share if ".experts." in name else 1.0)
    return Work(per_token, per_supervised, _attention(model.config))


def _attention(config: Any) -> float:
    config = _text(config)
    layers, heads = (
        getattr(config, name, None) or 0 for name in ("num_hidden_layers", "num_attention_heads")
    )
    width = getattr(config, "head_dim", None) or (config.hidden_size // heads if heads else 0)
    return 12.0 * layers * heads * width


def _active_share(config: Any) -> float:
    config = _text(config)
    used = getattr(config, "num_experts_per_tok", None)
    names = ("num_local_experts", "num_experts", "n_routed_experts")
    there = next((count for name in names if (count := getattr(config, name, None))), None)
    return used / there if used and there else 1.0


def _text(config: Any) -> Any:
    find = getattr(config, "get_text_config", None)
    return find() if find is not None else config
