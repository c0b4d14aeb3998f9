"""Which number format a run computes in: only the pod sees the hardware."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Literal

import torch

from sft_trainer.errors import UserError

logger = logging.getLogger(__name__)

Precision = Literal["bf16", "fp32"]
_NATIVE_CAPABILITY = (8, 0)  # NVIDIA Ampere; older GPUs emulate bf16, slower than fp32


def resolve(wanted: str, accelerator: str) -> Precision:
    """`wanted`, or for Auto bf16 where the hardware has it and fp32 elsewhere. The choice is logged.

    Raises:
        UserError: bf16 was demanded of a GPU that does not have it.
    """
    native = _gpu_has_bf16() if accelerator == "gpu" else cpu_has_bf16(_cpu_flags())
    if wanted == "Auto":
        chosen: Precision = "bf16" if native else "fp32"
        reason = "native here" if native else f"no native bf16 on this {accelerator.upper()}"
        logger.info("precision %s (%s)", chosen, reason)
        return chosen
    if wanted == "bf16":
        if not native and accelerator == "gpu":
            raise UserError(
                "PrecisionUnsupported",
                "training.precision is bf16, but this GPU has no bf16: set it to fp32 or remove it",
            )
        if not native:
            logger.warning("precision bf16 as asked, though this CPU only emulates it: fp32 is faster here")
        else:
            logger.info("precision bf16 as asked")
        return "bf16"
    logger.info("precision fp32 as asked")
    return "fp32"


def dtype(precision: Precision) -> torch.dtype:
    """The parameters' type during training; master weights are fp32 in either."""
    return torch.bfloat16 if precision == "bf16" else torch.float32


def cpu_has_bf16(flags: set[str]) -> bool:
    """Whether a CPU with these /proc/cpuinfo flags multiplies bf16 natively."""
    return bool(flags & {"avx512_bf16", "amx_bf16"})


def _gpu_has_bf16() -> bool:
    return torch.cuda.is_bf16_supported() and torch.cuda.get_device_capability() >= _NATIVE_CAPABILITY


def _cpu_flags() -> set[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return set()
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return set(flags.split())
