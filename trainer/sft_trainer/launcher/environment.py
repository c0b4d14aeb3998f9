"""The environment of a rank: exactly what DeepSpeed's own launcher would set, plus what is ours.

A test runs `deepspeed.launcher.launch` with the same hostfile and compares. Starting the ranks ourselves
saves two imports of torch, and a killed rank keeps its exit code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sft_trainer.errors import UserError
from sft_trainer.launcher.hostfile import Host
from sft_trainer.run_folder import RunFolder

_DEVICES = "CUDA_VISIBLE_DEVICES"
# glibc takes every large tensor from the kernel, page by page, and gives it back at once: 15 % of a step.
# With these it keeps what was freed; the ranks' heap grows in pieces of 64 MiB.
KEEP_FREED_MEMORY = ":".join(
    ("glibc.malloc.mmap_max=0", f"glibc.malloc.trim_threshold={2**36}", f"glibc.malloc.top_pad={2**26}")
)
_ALLOCATOR = "PYTORCH_ALLOC_CONF"
_ALLOCATOR_NAMES = (_ALLOCATOR, "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF")  # the first is taken
# Every micro-batch has another size: in segments that grow, freed memory fits the next one. Pinned memory is a few large
# blocks, those of offloaded state: torch would round each up to a power of two, and keep what was freed.
_GPU_ALLOCATOR = "expandable_segments:True,pinned_max_round_threshold_mb:64,pinned_max_cached_size_mb:64"


@dataclass(frozen=True)
class Gang:
    """All ranks, where this node stands among them, and where they meet."""

    hosts: Sequence[Host]
    node: int
    master_address: str
    master_port: int

    @property
    def world_size(self) -> int:
        """Number of ranks over all nodes."""
        return sum(host.slots for host in self.hosts)

    @property
    def local_ranks(self) -> range:
        """Global ranks of this node, in order of their local rank."""
        first = sum(host.slots for host in self.hosts[: self.node])
        return range(first, first + self.hosts[self.node].slots)


def deepspeed_variables(gang: Gang, local_rank: int) -> dict[str, str]:
    """What `deepspeed.launcher.launch` sets for the rank in slot `local_rank` of this node (0.19.8)."""
    slots = gang.hosts[gang.node].slots
    return {
        _DEVICES: ",".join(str(slot) for slot in range(slots)),
        "MASTER_ADDR": gang.master_address,
        "MASTER_PORT": str(gang.master_port),
        "WORLD_SIZE": str(gang.world_size),
        "CROSS_RANK": str(gang.node),
        "CROSS_SIZE": str(len(gang.hosts)),
        "LOCAL_SIZE": str(slots),
        "RANK": str(gang.local_ranks[local_rank]),
        "LOCAL_RANK": str(local_rank),
    }


def rank_environment(
    inherited: Mapping[str, str],
    gang: Gang,
    local_rank: int,
    *,
    accelerator: str,
    run: RunFolder,
    cpus: int,
    keep_freed_memory: bool = False,
) -> dict[str, str]:
    """The whole environment of one rank; what the user set (`workers.env`) wins over our defaults.

    UserError if CUDA_VISIBLE_DEVICES is set and names fewer GPUs than there are ranks.

    `cpus` are those of the pod: threads beyond a rank's share of them only wait for each other.
    `keep_freed_memory` is for ranks without GPU that have memory to spare.
    """
    slots = gang.hosts[gang.node].slots
    defaults = {
        "OMP_NUM_THREADS": str(max(1, cpus // slots)),
        "PYTHONFAULTHANDLER": "1",
        "PYTORCH_NVML_BASED_CUDA_CHECK": "1",  # as `import deepspeed` does: asking for GPUs must not occupy one
    }
    if accelerator == "cpu":
        defaults["DS_ACCELERATOR"] = "cpu"
    elif not any(name in inherited for name in _ALLOCATOR_NAMES):
        defaults[_ALLOCATOR] = _GPU_ALLOCATOR
    if keep_freed_memory:
        defaults["GLIBC_TUNABLES"] = KEEP_FREED_MEMORY
    return {
        **defaults,
        **inherited,
        **deepspeed_variables(gang, local_rank),
        **_given_devices(inherited, slots, accelerator),
        "PROMETHEUS_MULTIPROC_DIR": str(run.metrics),
    }


def _given_devices(inherited: Mapping[str, str], slots: int, accelerator: str) -> dict[str, str]:
    """The GPUs that somebody has given to this pod, instead of the first ones of the machine."""
    given = inherited.get(_DEVICES)
    if given is None or accelerator == "cpu":
        return {} if given is None else {_DEVICES: given}
    devices = [device.strip() for device in given.split(",") if device.strip()]
    if len(devices) < slots:
        raise UserError(
            "InvalidEnvironment",
            f"{_DEVICES} is {given!r}, the pod runs {slots} ranks with a GPU each; "
            "remove it from spec.workers.env or name as many",
        )
    return {_DEVICES: ",".join(devices[:slots])}
