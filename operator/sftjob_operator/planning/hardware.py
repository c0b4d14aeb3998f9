"""What the planner knows of the machines, and reading Kubernetes quantities."""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal

DEFAULT_GPU_MEMORY = 40 * 2**30
"""Assumed where neither the operator's settings nor a node label tells: the small A100."""

BF16_MAJOR = 8
"""The major compute capability from which on NVIDIA GPUs compute in bf16 (sft_trainer.precision)."""

_QUANTITY = re.compile(
    r"^([+-]?)([0-9]{1,40}(?:\.[0-9]{0,40})?|\.[0-9]{1,40})([eE][+-]?[0-9]{1,4}|[KMGTPE]i|[numkMGTPE]|)$"
)
_BINARY = {"Ki": 1, "Mi": 2, "Gi": 3, "Ti": 4, "Pi": 5, "Ei": 6}
_LARGEST = 2**63 - 1  # of Kubernetes' own quantities
_DECIMAL = {"n": -9, "u": -6, "m": -3, "": 0, "k": 3, "M": 6, "G": 9, "T": 12, "P": 15, "E": 18}


@dataclass(frozen=True)
class Hardware:
    """What the shell could find out; None = unknown."""

    gpu_memory_bytes: int | None = None
    """Memory of one GPU: operator setting, or the node label nvidia.com/gpu.memory."""
    gpu_bf16: bool | None = None
    """Whether every GPU the job may get computes in bf16."""
    host_memory_bytes: int | None = None
    """Memory of one pod of a CPU job where spec.workers.resources does not say; LocalCluster knows its machine."""


def quantity_bytes(quantity: int | str) -> int:
    """Bytes of a Kubernetes quantity (500Mi, 1G, 1e9, 128974848); ValueError says why it is none of ours."""
    match = _QUANTITY.match(str(quantity).strip())
    if match is None:
        raise ValueError(f"{_short(quantity)} is not a quantity such as 500Mi, 64Gi or 1e9")
    sign, digits, suffix = match.groups()
    number = Decimal(digits)
    if suffix in _BINARY:
        number *= 1024 ** _BINARY[suffix]
    elif suffix in _DECIMAL:
        number *= Decimal(10) ** _DECIMAL[suffix]
    else:
        number *= Decimal(10) ** int(suffix[1:])
    if sign == "-" and number:
        raise ValueError(f"{_short(quantity)} is negative: write 0 or more")
    if number > _LARGEST:
        raise ValueError(f"{_short(quantity)} is more than Kubernetes can count ({_LARGEST})")
    return int(number)


def _short(quantity: int | str) -> str:
    text = repr(quantity)
    return text if len(text) <= 40 else f"{text[:39]}…"


def mebibytes(number: int) -> str:
    """Bytes as a quantity for status, rounded up: 61200Mi; at most what `quantity_bytes` reads."""
    return f"{min(-(-number // 2**20), _LARGEST // 2**20)}Mi"


def gibibytes(number: int) -> str:
    """Bytes for a sentence: 61.2 GiB."""
    return f"{number / 2**30:.1f} GiB"
