"""The kernels of FlashAttention there may be, with one signature, and whether one computes what it should.

That of the package flash-attn 2 where it is installed, else the one inside torch, which caps no scores and drops none
out. Both are compared with plain arithmetic on the very device before they are used: values and gradients.
"""

from __future__ import annotations

import importlib.metadata
from typing import Any, NamedTuple, Protocol

import torch

_TOLERANCE = 3e-2  # relative to the largest element; bf16 rounds to 4e-3
_NOT_TORCH = "torch's own kernel has no capped scores and no dropout"
_SIZES = (40, 24)  # tokens of the documents with which a kernel is tried


class Kernel(Protocol):
    """Causal attention of query [N, H, D], key and value [N, KV, D], the documents one behind another.

    `edges` int32 are the positions between documents, 0 and N included; `longest` is the most tokens of one. Token i
    sees `window` tokens, itself included. The result is [N, H, D].
    """

    def __call__(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        edges: torch.Tensor,
        longest: int,
        *,
        scale: float | None,
        window: int | None,
        cap: float,
        dropout: float,
    ) -> torch.Tensor:
        """Attend."""
        ...


class Heads(NamedTuple):
    """What a kernel has to be able to compute."""

    query: int
    key: int
    size: int
    window: int | None
    cap: float
    dropout: float


class Found(NamedTuple):
    """A kernel with its name; None and why there is none."""

    kernel: Kernel | None
    words: str


def of_package() -> Found:
    """That of the package flash-attn 2."""
    try:
        from flash_attn import flash_attn_varlen_func
    except ImportError as error:  # not installed, or built for another torch
        return Found(None, f"flash-attn: {_line(error)}")

    def kernel(
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        edges: torch.Tensor,
        longest: int,
        *,
        scale: float | None,
        window: int | None,
        cap: float,
        dropout: float,
    ) -> torch.Tensor:
        span = (-1, -1) if window is None else (window - 1, 0)
        counts = {"max_seqlen_q": longest, "max_seqlen_k": longest}
        options: dict[str, Any] = {"dropout_p": dropout, "softmax_scale": scale, "softcap": cap}
        out: torch.Tensor = flash_attn_varlen_func(
            *(query, key, value, edges, edges), **counts, **options, causal=True, window_size=span
        )
        return out

    return Found(kernel, f"flash-attn {_version('flash-attn')}")


def of_torch(heads: Heads) -> Found:
    """That inside torch."""
    if heads.cap or heads.dropout:
        return Found(None, _NOT_TORCH)
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError as error:
        return Found(None, f"torch: {_line(error)}")

    def kernel(
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        edges: torch.Tensor,
        longest: int,
        *,
        scale: float | None,
        window: int | None,
        cap: float,
        dropout: float,
    ) -> torch.Tensor:
        if cap or dropout:
            raise ValueError(_NOT_TORCH)
        span = (-1 if window is None else window - 1, 0)
        grouped = query.shape[1] != key.shape[1]
        out: torch.Tensor = varlen_attn(  # type: ignore[assignment]
            *(query, key, value, edges, edges, longest, longest),
            scale=scale,
            window_size=span,
            enable_gqa=grouped,
        )
        return out

    return Found(kernel, f"torch {torch.__version__}")


def _line(error: Exception) -> str:
    return (str(error).strip() or repr(error)).splitlines()[0][:200]


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "of unknown version"


def defect(kernel: Kernel, heads: Heads, dtype: torch.dtype, device: torch.device) -> str | None:
    """What is wrong with the values or gradients of `kernel` for two short documents; None: nothing."""
    random = torch.Generator().manual_seed(0)
    counts = (heads.query, heads.key, heads.key, heads.query)
    shapes = [(sum(_SIZES), count, heads.size) for count in counts]
    query, key, value, weight = (
        torch.randn(shape, generator=random).to(device, dtype).requires_grad_() for shape in shapes
    )
    window = None if heads.window is None else min(heads.window, _SIZES[1] // 2)
    options: dict[str, Any] = {"scale": heads.size**-0.5, "window": window, "cap": heads.cap}
    edges = torch.tensor([0, _SIZES[0], sum(_SIZES)], dtype=torch.int32, device=device)
    exact = [tensor.detach().float().requires_grad_() for tensor in (query, key, value)]
    with torch.enable_grad():
        try:
            out = kernel(query, key, value, edges, max(_SIZES), **options, dropout=0.0)
            found = [out, *torch.autograd.grad(out, (query, key, value), weight)]
        except (RuntimeError, TypeError, ValueError, NotImplementedError) as error:
            return f"fails: {_line(error)}"
        plain = _plain(*exact, **options)
        expected = [plain, *torch.autograd.grad(plain, exact, weight.float())]
    for mine, right in zip(found, expected, strict=True):
        error_size = float((mine.detach().float() - right.detach()).abs().max() / right.detach().abs().max())
        if not error_size <= _TOLERANCE:
            return f"computes something else here (by {error_size:.1e})"
    return None


def _plain(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    scale: float,
    window: int | None,
    cap: float,
) -> torch.Tensor:
    """The same in the words of the definition, for documents of `_SIZES`."""
    groups = query.shape[1] // key.shape[1]
    rows = []
    for q, k, v in zip(*(torch.split(tensor, list(_SIZES)) for tensor in (query, key, value)), strict=True):
        k, v = (tensor.repeat_interleave(groups, dim=1) for tensor in (k, v))
        scores = torch.einsum("qhd,khd->hqk", q, k) * scale
        scores = cap * torch.tanh(scores / cap) if cap else scores
        index = torch.arange(len(q), device=q.device)
        distance = index[:, None] - index
        seen = (distance >= 0) & (distance < (window or len(q)))
        weights = scores.masked_fill(~seen, -torch.inf).softmax(-1)
        rows.append(torch.einsum("hqk,khd->qhd", weights, v))
    return torch.cat(rows)
