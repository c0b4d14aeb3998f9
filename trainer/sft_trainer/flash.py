"""FlashAttention (https://arxiv.org/abs/2307.08691): all documents of a micro-batch in one call of a GPU's kernel.

A kernel takes one row of tokens and the edges of its documents, so that rows are laid behind one another here.
transformers' own way to it tells packed documents apart only where a micro-batch is a single row.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from transformers import PretrainedConfig

from sft_trainer import attention, flashkernels
from sft_trainer.flashkernels import Found, Heads, Kernel

AT_ONCE = "varlen_per_document"
_LARGEST_HEAD = 256
_OLDEST_GPU = (8, 0)
_DROPOUTS = ("attention_dropout", "attn_pdrop", "attn_dropout")  # what architectures call it


def find(model: Any, dtype: torch.dtype, device: torch.device) -> Found:
    """A kernel which computes the attention of `model` in `dtype` on this `device`, and was tried."""
    capability = torch.cuda.get_device_capability(device) if device.type == "cuda" else None
    if (obstacle := missing(model, dtype, capability)) is not None:
        return Found(None, obstacle)
    heads, failures = heads_of(model.config), []
    for found in (flashkernels.of_package(), flashkernels.of_torch(heads)):
        wrong = None if found.kernel is None else flashkernels.defect(found.kernel, heads, dtype, device)
        if found.kernel is not None and wrong is None:
            return found
        failures.append(f"{found.words} {wrong}" if wrong else found.words)
    return Found(None, "; ".join(failures))


def missing(model: Any, dtype: torch.dtype, capability: tuple[int, int] | None) -> str | None:
    """What `model`, the number format or the GPU of this `capability` (None = a CPU) lacks for FlashAttention."""
    if capability is None:
        return "it computes on GPUs only"
    if capability < _OLDEST_GPU:
        return "it needs GPUs of compute capability 8.0 or newer"
    if dtype not in (torch.bfloat16, torch.float16):
        return "it computes in bf16 and fp16 only"
    if not attention.sees_documents(model):
        return "this architecture does not support it, or attends in chunks"
    size = heads_of(model.config).size
    if size > _LARGEST_HEAD or size % 8:
        return f"heads of {size} are not a multiple of 8 up to {_LARGEST_HEAD}"
    return None


def heads_of(config: PretrainedConfig) -> Heads:
    """As a configuration of transformers states it."""
    text: Any = config.get_text_config()
    heads = int(text.num_attention_heads)
    return Heads(
        query=heads,
        key=int(getattr(text, "num_key_value_heads", None) or heads),
        size=int(getattr(text, "head_dim", None) or text.hidden_size // heads),
        window=getattr(text, "sliding_window", None),
        cap=float(getattr(text, "attn_logit_softcapping", None) or 0.0),
        dropout=max(float(getattr(text, name, None) or 0.0) for name in _DROPOUTS),
    )


def install(model: Any, kernel: Kernel) -> None:
    """Let `model` attend by `kernel`."""
    attention.use(model, AT_ONCE, functools.partial(_attend, kernel))


def _attend(
    kernel: Kernel,
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    position_ids: torch.Tensor | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **_: Any,
) -> attention.Output:
    """Of query [B, H, T, D], key and value [B, KV, T, D], positions [B or 1, T]; the result is [B, T, H, D]."""
    batch, _heads, length, _size = query.shape
    edges, longest = _edges(attention.told(query, attention_mask, position_ids), batch)
    query, key, value = (tensor.transpose(1, 2).flatten(0, 1) for tensor in (query, key, value))
    window = None if sliding_window is None or sliding_window >= longest else sliding_window
    options: dict[str, Any] = {"scale": scaling, "window": window, "cap": softcap or 0.0, "dropout": dropout}
    out = kernel(query, key, value, edges, longest, **options)
    return out.reshape(batch, length, *out.shape[1:]), None


@functools.lru_cache(maxsize=4)
def _edges(told: torch.Tensor, batch: int) -> tuple[torch.Tensor, int]:
    """Of `batch` rows, looked at once a pass: the same tensor for every layer, and each look waits for the GPU."""
    rows = told.expand(batch, -1)
    first = torch.nn.functional.pad(attention.begins(rows), (1, 0), value=True)
    starts = torch.nonzero(first.flatten()).flatten()
    edges = torch.nn.functional.pad(starts, (0, 1), value=first.numel())
    return edges.to(torch.int32), int(edges.diff().max())
