"""What a device could compute at most, in FLOP/s: what MFU is measured against.

From the vendors' data sheets: dense matrices, no sparsity, fp32 accumulation, at the full clock; fp32 without TF32,
which PyTorch leaves off. A device that is not listed has no MFU rather than a wrong one; $SFT_PEAK_FLOPS tells.
"""

from __future__ import annotations

import math
import os
import re
import sys

from sft_trainer.config import ENV_PEAK_FLOPS, Precision

_TERA = 1e12
# A pattern of the name that CUDA gives the device: TFLOP/s in bf16, fp16, fp32; None = not in hardware.
_PEAKS: tuple[tuple[str, float | None, float, float], ...] = (
    (r"\bGB200\b", 2500, 2500, 80),
    (r"\bB200\b", 2250, 2250, 75),
    (r"\bH200 NVL\b", 835, 835, 60),
    (r"\bG?H200\b", 989.4, 989.4, 67),
    (r"\bH[18]00 NVL\b", 835, 835, 60),
    (r"\bH[18]00 PCIe\b", 756, 756, 51),
    (r"\bH[18]00\b", 989.4, 989.4, 67),
    (r"\bH20\b", 148, 148, 44),
    (r"\bA[18]00\b", 312, 312, 19.5),
    (r"\bA30\b", 165, 165, 10.3),
    (r"\bA10\b", 125, 125, 31.2),
    (r"\bA40\b", 149.7, 149.7, 37.4),
    (r"\bRTX A6000\b", 154.8, 154.8, 38.7),
    (r"\bL40S\b", 362.05, 362.05, 91.6),
    (r"\bL40\b", 181.05, 181.05, 90.5),
    (r"\bL4\b", 121, 121, 30.3),
    (r"\bRTX 4090\b", 165.2, 165.2, 82.6),
    (r"\bRTX 3090\b", 71, 71, 35.6),
    (r"\bT4\b", None, 65, 8.1),
    (r"\bMI300X\b", 1307.4, 1307.4, 163.4),
)


def peak_flops(precision: Precision) -> float | None:
    """Of this rank's device in this number format; None where nobody knows."""
    told = _told(os.environ.get(ENV_PEAK_FLOPS))
    if told is not None:
        return told
    torch = sys.modules.get("torch")  # never imported here
    if torch is None or not torch.cuda.is_available():
        return None
    return listed(torch.cuda.get_device_name(), precision)


def listed(device: str, precision: Precision) -> float | None:
    """The data sheet's figure for the device of this name; None for others, and for a slice of one (MIG)."""
    if "MIG" in device:
        return None
    for pattern, bf16, fp16, fp32 in _PEAKS:
        if re.search(pattern, device):
            found = {"bf16": bf16, "fp16": fp16, "fp32": fp32}[precision]
            return None if found is None else found * _TERA
    return None


def _told(text: str | None) -> float | None:
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if math.isfinite(value) and value > 0 else None
