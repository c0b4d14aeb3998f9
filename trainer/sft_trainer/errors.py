"""What can end a trainer container, and with which exit code.

Every part of the trainer raises one of these; the entry points turn whatever arrives into a
`TrainerError` with `classify` and from that into an exit code and an `Outcome`. A message is one sentence
for the person who wrote the SFTJob: it names the field, file or line, and the fix.
"""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path

from sft_trainer.config import ENV_WORKSPACE, EXIT_CLASSES, ExitCode, FailureClass

# What a full disk looks like when a library has turned the OSError into an exception of its own.
_FULL_WORDS = ("no space left on device", "disk quota exceeded")
# Names under which torch, NCCL and others make shared memory; torch leaves out /dev/shm.
_SHARED_MEMORY_WORDS = ("/dev/shm", "/torch_")
_FULL_ERRNO = (errno.ENOSPC, errno.EDQUOT)
_GPU_MEMORY_TYPES = ("OutOfMemoryError", "AcceleratorOutOfMemoryError")
# How CUDA, NCCL, cuBLAS and cuDNN, which take memory besides torch's allocator, say that there was none.
_GPU_MEMORY_WORDS = re.compile(
    r"CUDA (driver )?error: out of memory|Cuda failure .*'out of memory'|CUBLAS_STATUS_ALLOC_FAILED"
    r"|CUDNN_STATUS_\w*DEVICE_ALLOCATION_FAILED|ran out of memory outside PyTorch's allocator"
)


class TrainerError(Exception):
    """A failure whose class is known. `reason` is a CamelCase word for conditions, `message` one sentence."""

    exit_code: ExitCode = ExitCode.CRASH

    def __init__(self, message: str, reason: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason or str(EXIT_CLASSES[self.exit_code])

    @property
    def failure_class(self) -> FailureClass:
        """The class that the restart policy keys on."""
        return EXIT_CLASSES[self.exit_code]


class Crash(TrainerError):
    """Anything not foreseen; worth another attempt."""


class UserError(TrainerError):
    """The data or the configuration is wrong, or would end the same way every time: never retried."""

    exit_code = ExitCode.USER_ERROR

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message, reason)


class VolumeFull(TrainerError):
    """No space left on the workspace: never retried."""

    exit_code = ExitCode.VOLUME_FULL


class PeerLost(TrainerError):
    """Another rank or node died under this one."""

    exit_code = ExitCode.PEER_LOST


class Interrupted(TrainerError):
    """Stopped by SIGTERM."""

    exit_code = ExitCode.INTERRUPTED


class Fenced(TrainerError):
    """A newer run of the job owns the volume."""

    exit_code = ExitCode.FENCED


class GpuOutOfMemory(TrainerError):
    """The accelerator's memory did not suffice."""

    exit_code = ExitCode.GPU_OUT_OF_MEMORY


class HostOutOfMemory(TrainerError):
    """The host's memory did not suffice and Python noticed before the kernel did."""

    exit_code = ExitCode.KILLED


class Network(TrainerError):
    """A download failed for a reason that may pass."""

    exit_code = ExitCode.NETWORK


def classify(exc: BaseException) -> TrainerError:
    """`exc` as a TrainerError: itself, or the class that its type, errno or cause points to; else Crash."""
    chain = _chain(exc)
    for link in chain:
        if isinstance(link, TrainerError):
            return link
    for link in chain:
        if _is_full(link):
            return _full(link)
        if isinstance(link, PermissionError):
            return UserError("PermissionDenied", _permission_message(link))
        if (words := gpu_memory_words(link)) is not None:
            return GpuOutOfMemory(f"the GPU ran out of memory: {words}")
        if isinstance(link, MemoryError):
            return HostOutOfMemory("the process ran out of memory; raise the memory limit")
        if isinstance(link, KeyboardInterrupt):
            return Interrupted("interrupted")
    return Crash(f"{type(exc).__name__}: {_first_line(exc)}")


def gpu_memory_words(exc: BaseException) -> str | None:
    """The line in which `exc` says that the GPU's memory did not suffice; None: it says something else."""
    if type(exc).__name__ in _GPU_MEMORY_TYPES:
        return _first_line(exc)
    said = next((line for line in str(exc).splitlines() if _GPU_MEMORY_WORDS.search(line)), None)
    return None if said is None else said.strip()[:500]


def _chain(exc: BaseException) -> list[BaseException]:
    """`exc` and the exceptions it was raised from or during, the outermost first."""
    chain: list[BaseException] = []
    link: BaseException | None = exc
    while link is not None and link not in chain:
        chain.append(link)
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)
    return chain


def _is_full(exc: BaseException) -> bool:
    if isinstance(exc, OSError) and exc.errno in _FULL_ERRNO:
        return True
    return any(words in str(exc).lower() for words in _FULL_WORDS)


def _full(exc: BaseException) -> TrainerError:
    """Which place is full: the workspace, unless the file's name says that it lies elsewhere in the pod."""
    name = getattr(exc, "filename", None)
    if any(words in str(exc) for words in _SHARED_MEMORY_WORDS):
        return UserError(
            "SharedMemoryFull",
            f"no space left in the pod's shared memory (/dev/shm): {_first_line(exc)}; "
            "raise spec.workers.sharedMemory",
        )
    workspace = os.environ.get(ENV_WORKSPACE)
    if workspace and isinstance(name, str) and os.path.isabs(name):
        if not Path(name).resolve().is_relative_to(Path(workspace).resolve()):
            return Crash(
                f"no space left in the pod's own storage while writing {name}; raise ephemeral-storage in "
                "the pod's resources, or free space on the node",
                "EphemeralStorageFull",
            )
    where = f" while writing {name}" if name else ""
    return VolumeFull(
        f"no space left on the workspace volume{where}; free space or enlarge the claim in spec.workspace"
    )


def _permission_message(exc: PermissionError) -> str:
    what = exc.filename or "a file"
    return (
        f"the pod's user {os.getuid()} may not use {what}: change its mode or owner on the volume, or set "
        "securityContext (runAsUser, fsGroup) in the podTemplate of spec.workers and spec.prepare"
    )


def _first_line(exc: BaseException) -> str:
    text = str(exc).strip()
    return text.splitlines()[0][:500] if text else "no message"
