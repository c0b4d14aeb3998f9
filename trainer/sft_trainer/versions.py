"""Which software and hardware a training ran on: what somebody needs to run it again."""

from __future__ import annotations

import importlib.metadata
import platform

import torch

_PACKAGES = (
    "sftjob",
    "torch",
    "deepspeed",
    "transformers",
    "peft",
    "tokenizers",
    "safetensors",
    "numpy",
    "pyarrow",
)


def versions() -> dict[str, str]:
    """Of Python, the packages that compute, and CUDA where there is a GPU."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    if torch.cuda.is_available() and torch.version.cuda:
        found["cuda"] = torch.version.cuda
    return found


def device(local: torch.device) -> str:
    """What this rank computes on, in words."""
    if local.type == "cuda":
        return torch.cuda.get_device_name(local)
    return f"CPU ({platform.machine()}, {torch.get_num_threads()} threads)"
