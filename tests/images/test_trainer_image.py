"""The trainer image, as it is by default, without kernels of its own: 6 GB (up to 40 on the disk while it is made), some minutes."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))

import build
import buildah
import inside

import tiny
from machine import skip_or_fail
from preparing import CHAT

pytestmark = [pytest.mark.soak, pytest.mark.timeout(3600)]

NOBODY = 1_234_567
PYTHON = "/opt/sftjob/bin/python"
ENVIRONMENT = {
    "PATH": "/opt/sftjob/bin:/usr/bin:/bin",
    "HOME": "/tmp",
    "USER": "sftjob",
    "PYTHONDONTWRITEBYTECODE": "1",
}


@pytest.fixture(scope="module")
def root() -> Iterator[Path]:
    try:
        image = build.trainer()
    except buildah.Missing as error:
        skip_or_fail(str(error))
    with inside.root(image) as found:
        yield found


def test_the_trainer_imports_what_it_trains_with_on_a_root_that_nobody_may_write(root: Path):
    code = "import torch, deepspeed, transformers, peft, sft_trainer.train; print(torch.ones(3).sum().item())"
    done = inside.run(
        root, PYTHON, "-c", code, environment=ENVIRONMENT | {"DS_ACCELERATOR": "cpu"}, user=NOBODY
    )
    assert (done.returncode, done.stdout.splitlines()[-1:]) == (0, ["3.0"]), done.stderr[-3000:]


def test_the_trainer_prepares_a_job_as_any_user(root: Path, tmp_path: Path):
    tiny.model(tmp_path / "models" / "tiny")
    (tmp_path / "datasets").mkdir()
    (tmp_path / "datasets" / "chats.jsonl").write_text(json.dumps(CHAT) + "\n")
    data = {"train": [{"name": "0", "path": "datasets/chats.jsonl"}], "maxLength": 128, "packing": "BestFit"}
    data |= {"lossOn": "Assistant", "onTooLong": "Truncate", "onInvalidRow": "Fail"}
    job = {"namespace": "default", "name": "job", "uid": "uid-1"}
    document = {"schemaVersion": 1, "job": job, "model": {"path": "models/tiny"}, "data": data, "seed": 1}
    (tmp_path / "prepare.json").write_text(json.dumps(document))
    tmp_path.chmod(0o777)
    places = {
        "SFTJOB_WORKSPACE": "/mnt",
        "SFTJOB_CONFIG": "/mnt",
        "SFTJOB_TERMINATION_LOG": "/mnt/outcome.json",
    }
    words = (PYTHON, "-m", "sft_trainer", "prepare")
    done = inside.run(root, *words, environment=ENVIRONMENT | places, user=NOBODY, workspace=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads((tmp_path / "outcome.json").read_text())["outcome"] == "Succeeded"


def test_the_trainer_image_holds_no_compiler_of_its_own(root: Path):
    assert not [
        path
        for name in ("gcc", "g++", "cc", "nvcc", "uv", "pip")
        for path in root.glob(f"opt/sftjob/bin/{name}")
    ]
    assert not list(root.glob("usr/bin/gcc*"))


def test_nccl_finds_the_libraries_that_rdma_needs(root: Path):
    code = (
        "import ctypes\n"
        "verbs = ctypes.CDLL('libibverbs.so.1', use_errno=True)\n"
        "ctypes.CDLL('libmlx5.so.1')\n"
        "count = ctypes.c_int()\n"
        "verbs.ibv_get_device_list(ctypes.byref(count))\n"
        "print(count.value)"
    )
    done = inside.run(root, PYTHON, "-c", code, environment=ENVIRONMENT, user=NOBODY)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().isdigit(), done.stdout
    assert list(root.glob("usr/lib/*/libibverbs/libmlx5-*.so")), "the driver of ConnectX adapters"
