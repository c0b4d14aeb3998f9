"""Which device a rank computes on, and whether the torch of this image computes on it."""

from __future__ import annotations

import re

import torch

from sft_trainer.errors import Crash, UserError

_ARCHITECTURE = re.compile(r"sm_(\d+)")  # compute capability without its dot, and perhaps a letter


def own(accelerator: str, local_rank: int) -> torch.device:
    """The rank's own device, which is the current one from now on.

    Raises:
        Crash: there is no GPU.
        UserError: it is older than those that torch was built for.
    """
    if accelerator == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise Crash(
            "the pod has no usable GPU: the driver or the device plugin is missing on this node", "NoGPU"
        )
    require_kernels(local_rank)
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)


def require_kernels(device: int) -> None:
    """Nothing when torch has kernels for this GPU, or makes them at first use as for one newer than itself.

    Raises:
        UserError: the GPU is older than all that it has kernels for.
    """
    known = [int(found[1]) for found in map(_ARCHITECTURE.match, torch.cuda.get_arch_list()) if found]
    major, minor = torch.cuda.get_device_capability(device)
    if known and 10 * major + minor < min(known):
        least = "{}.{}".format(*divmod(min(known), 10))
        raise UserError(
            "GPUUnsupported",
            f"the GPU is a {torch.cuda.get_device_name(device)} of compute capability {major}.{minor}, and the trainer's "
            f"torch {torch.__version__} has no kernels for any below {least}: use newer GPUs (with a nodeSelector in "
            "spec.workers.podTemplate), or a trainer image with a torch that was built for this one",
        )
