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


def is_native(accelerator: str) -> bool:
    """Whether the hardware of this rank computes in bf16 by itself."""
    return _gpu_has_bf16() if accelerator == "gpu" else cpu_has_bf16(_cpu_flags())


def resolve(
    wanted: Literal["bf16", "fp32", "Auto"], accelerator: str, *, native: bool, saved: Precision | None = None
) -> Precision:
    """The format of the checkpoint that is continued (`saved`), else `wanted`, else what the hardware has.

    `native`: every rank has bf16. The choice is logged.

    Raises:
        UserError: the checkpoint is in another format than `wanted`, or bf16 is needed and a GPU has none.
    """
    if saved is not None and wanted not in ("Auto", saved):
        raise UserError(
            "PrecisionChanged",
            f"the checkpoint to continue is in {saved} and training.precision is {wanted}: set it to {saved} or "
            "remove it, or start under another metadata.name",
        )
    if saved is not None:
        chosen, reason = saved, "as in the checkpoint"
    elif wanted == "Auto":
        chosen = "bf16" if native else "fp32"
        reason = "native here" if native else f"not every {accelerator.upper()} has native bf16"
    else:
        chosen, reason = wanted, "as asked"
    if chosen == "bf16" and not native and accelerator == "gpu":
        way = (
            "set it to fp32 or remove it" if saved is None else "use GPUs of compute capability 8.0 or newer"
        )
        raise UserError(
            "PrecisionUnsupported", f"training.precision is bf16 ({reason}), but a GPU has no bf16: {way}"
        )
    if chosen == "bf16" and not native:
        logger.warning("precision bf16 (%s), though a CPU only emulates it: fp32 is faster here", reason)
    else:
        logger.info("precision %s (%s)", chosen, reason)
    return chosen


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
