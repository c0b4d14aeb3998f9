"""Every exception has a class and an exit code, and a sentence instead of a traceback."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from sft_trainer.config import ExitCode, FailureClass
from sft_trainer.errors import (
    Fenced,
    Interrupted,
    Network,
    PeerLost,
    TrainerError,
    UserError,
    VolumeFull,
    classify,
)


class OutOfMemoryError(RuntimeError):
    """Called as torch's own."""


@pytest.mark.parametrize(
    ("exc", "code", "failure"),
    [
        (UserError("InvalidRow", "line 3"), ExitCode.USER_ERROR, FailureClass.USER_ERROR),
        (Fenced("newer run"), ExitCode.FENCED, FailureClass.FENCED),
        (Interrupted("stop"), ExitCode.INTERRUPTED, FailureClass.INTERRUPTED),
        (PeerLost("rank 1"), ExitCode.PEER_LOST, FailureClass.PEER_LOST),
        (Network("down"), ExitCode.NETWORK, FailureClass.NETWORK),
        (
            OSError(errno.ENOSPC, "No space left on device", "/x"),
            ExitCode.VOLUME_FULL,
            FailureClass.VOLUME_FULL,
        ),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), ExitCode.VOLUME_FULL, FailureClass.VOLUME_FULL),
        (RuntimeError("write: No space left on device"), ExitCode.VOLUME_FULL, FailureClass.VOLUME_FULL),
        (OutOfMemoryError("tried 2 GiB"), ExitCode.GPU_OUT_OF_MEMORY, FailureClass.GPU_OUT_OF_MEMORY),
        (MemoryError(), ExitCode.KILLED, FailureClass.HOST_OUT_OF_MEMORY),
        (KeyError("x"), ExitCode.CRASH, FailureClass.CRASH),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_an_exception_has_a_class(exc: BaseException, code: ExitCode, failure: FailureClass) -> None:
    error = classify(exc)
    assert (error.exit_code, error.failure_class) == (code, failure)


@pytest.mark.parametrize(
    "said",
    [
        "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported at some other API call",
        "CUDA driver error: out of memory",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
        "CUDA ran out of memory outside PyTorch's allocator. If this workload uses many dynamic shapes, cuDNN may",
        "NCCL error in: NCCLUtils.cpp:77, unhandled cuda error\nLast error:\nCuda failure 2 'out of memory'",
    ],
)
def test_memory_that_torch_does_not_allocate_itself_is_the_gpus_too(said: str) -> None:
    error = classify(RuntimeError(said))
    assert error.exit_code == ExitCode.GPU_OUT_OF_MEMORY
    assert "out of memory" in error.message
    assert "\n" not in error.message


def test_the_cause_decides_behind_a_wrapper() -> None:
    def raised(cause: BaseException) -> TrainerError:
        try:
            raise RuntimeError("saving failed") from cause
        except RuntimeError as exc:
            return classify(exc)

    assert isinstance(raised(OSError(errno.ENOSPC, "full")), VolumeFull)
    assert raised(UserError("InvalidRow", "line 3")).reason == "InvalidRow"
    assert raised(ValueError("x")).message == "RuntimeError: saving failed"


def test_a_crash_is_one_line() -> None:
    assert classify(ValueError("first\nsecond")).message == "ValueError: first"
    assert classify(ValueError()).message == "ValueError: no message"


def test_a_full_volume_names_the_file_and_the_fix() -> None:
    message = classify(OSError(errno.ENOSPC, "No space left on device", "/data/x.arrow")).message
    assert "/data/x.arrow" in message
    assert "spec.workspace" in message


@pytest.mark.parametrize(
    "exc",
    [
        OSError(errno.ENOSPC, "No space left on device", "/dev/shm/nccl-a1"),
        RuntimeError("unable to write to file </torch_17_23_0>: No space left on device (28)"),
        RuntimeError("Error while creating shared memory segment /dev/shm/nccl-x, No space left on device"),
    ],
    ids=["file", "torch", "NCCL"],
)
def test_full_shared_memory_is_not_a_full_volume(exc: Exception) -> None:
    error = classify(exc)
    assert (error.reason, error.exit_code) == ("SharedMemoryFull", ExitCode.USER_ERROR)
    assert "spec.workers.sharedMemory" in error.message


def test_a_full_disk_of_the_node_is_told_from_a_full_volume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SFTJOB_WORKSPACE", str(tmp_path / "workspace"))
    inside, outside = str(tmp_path / "workspace" / "x"), str(tmp_path / "cache" / "x")
    assert classify(OSError(errno.ENOSPC, "full", inside)).exit_code == ExitCode.VOLUME_FULL
    error = classify(OSError(errno.ENOSPC, "full", outside))
    assert (error.reason, error.exit_code) == ("EphemeralStorageFull", ExitCode.CRASH)
    assert outside in error.message
    assert "ephemeral-storage" in error.message


def test_a_file_that_the_pods_user_may_not_read_is_the_users_to_mend():
    found = classify(PermissionError(13, "Permission denied", "/workspace/models/m/model.safetensors"))
    assert found.exit_code == ExitCode.USER_ERROR
    assert found.reason == "PermissionDenied"
    assert "model.safetensors" in found.message
    assert "runAsUser" in found.message
