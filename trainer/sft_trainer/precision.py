"""Which number format a run computes in: only the pod sees the hardware."""

from __future__ import annotations

import functools
import logging
from pathlib import Path
from typing import Literal

import torch
from deepspeed.accelerator import get_accelerator

from sft_trainer.config import Precision
from sft_trainer.errors import Crash, UserError

logger = logging.getLogger(__name__)

_NATIVE_CAPABILITY = (8, 0)  # NVIDIA Ampere; older GPUs emulate bf16, slower than fp32


def native(accelerator: str) -> set[Precision]:
    """The formats that the hardware of this rank computes in by itself."""
    found: set[Precision] = {"fp32"}
    if _gpu_has_bf16() if accelerator == "gpu" else cpu_has_bf16():
        found.add("bf16")
    if get_accelerator().is_fp16_supported():
        found.add("fp16")
    return found


def resolve(
    wanted: Precision | Literal["Auto"],
    accelerator: str,
    *,
    formats: set[Precision],
    zero_stage: int,
    saved: Precision | None = None,
) -> Precision:
    """The format of the checkpoint that is continued (`saved`), else `wanted`, else the hardware's best.

    `formats`: those that every rank computes in natively. Of itself a CPU takes bf16 or fp32, a GPU without bf16
    takes fp16, but not with ZeRO stage 0, which accumulates gradients in the model's type. The choice is logged.

    Raises:
        UserError: the checkpoint is in another format than `wanted`, or the hardware lacks the one needed.
        Crash: a GPU of this attempt lacks the checkpoint's; those of the attempt which wrote it had it.
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
        chosen, reason = "fp32", f"not every {accelerator.upper()} has native bf16"
        if "bf16" in formats:
            chosen, reason = "bf16", "native here"
        elif accelerator == "gpu" and "fp16" in formats and zero_stage > 0:
            chosen = "fp16"
    else:
        chosen, reason = wanted, "as asked"
    if chosen not in formats and (accelerator == "gpu" or chosen == "fp16"):
        least = {"bf16": "8.0", "fp16": "7.5", "fp32": "0"}[chosen]
        way = f"use GPUs of compute capability {least} or newer"
        if saved is not None and accelerator == "gpu":
            raise Crash(
                f"the checkpoint to continue is in {saved}, and a GPU of this attempt does not compute in it: {way}, "
                "with a nodeSelector in spec.workers.podTemplate where the cluster has others as well",
                "GPUUnsuitable",
            )
        if saved is None:
            way = f"remove it, or {way}"
        raise UserError(
            "PrecisionUnsupported",
            f"training.precision is {chosen} ({reason}), but a {accelerator.upper()} of this job does not compute "
            f"in it: {way}",
        )
    if chosen not in formats:
        logger.info(
            "precision bf16 (%s), which not every CPU here has: those without compute most products in fp32",
            reason,
        )
    else:
        logger.info("precision %s (%s)", chosen, reason)
    return chosen


def dtype(precision: Precision) -> torch.dtype:
    """The parameters' type during training; master weights are fp32 in each."""
    return {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[precision]


@functools.cache
def cpu_has_bf16() -> bool:
    """Whether this CPU multiplies bf16 by itself."""
    return multiplies_bf16(_cpu_flags())


def multiplies_bf16(flags: set[str]) -> bool:
    """Whether a CPU with these /proc/cpuinfo flags does."""
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
