"""Our ranks see what DeepSpeed's own launcher would show them, and what we add is known by name."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from launching import Pod
from sft_trainer.errors import UserError
from sft_trainer.launcher.environment import Gang, rank_environment
from sft_trainer.launcher.hostfile import Host
from sft_trainer.run_folder import RunFolder

OURS = {"OMP_NUM_THREADS", "PYTHONFAULTHANDLER", "DS_ACCELERATOR", "PROMETHEUS_MULTIPROC_DIR"}
DUMP = "open(f'{run}/env-{rank}.json', 'w').write(json.dumps(dict(os.environ)))\nfinish()"


@pytest.mark.processes
@pytest.mark.timeout(300)
def test_ranks_see_what_deepspeeds_launcher_would_show_them(tmp_path: Path) -> None:
    pod = Pod(tmp_path, index=1, nodes=2, processes=2)
    for name in OURS:
        pod.environment.pop(name, None)
    assert pod.ends(DUMP).exit_code == 0
    ours = [json.loads((pod.run / f"env-{rank}.json").read_text()) for rank in (2, 3)]

    script = tmp_path / "dump.py"
    script.write_text(
        "import json, os, sys\n"
        "name = 'deepspeed-' + os.environ['RANK'] + '.json'\n"
        "open(os.path.join(sys.argv[1], name), 'w').write(json.dumps(dict(os.environ)))\n"
    )
    options = ["--hostfile", str(pod.config / "hostfile"), "--no_ssh", "--node_rank", "1", "--no_local_rank"]
    options += ["--master_addr", "127.0.0.2", "--master_port", ours[0]["MASTER_PORT"]]
    subprocess.run(
        [sys.executable, "-m", "deepspeed.launcher.runner", *options, str(script), str(tmp_path)],
        env={**pod.environment, "DS_ACCELERATOR": "cpu"},
        check=True,
        timeout=250,
    )
    for mine, rank in zip(ours, (2, 3), strict=True):
        theirs = json.loads((tmp_path / f"deepspeed-{rank}.json").read_text())
        assert without(mine, OURS) == without(theirs, OURS)
        assert set(mine) >= OURS


def without(environment: dict[str, str], names: set[str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name not in names}


def environment(
    inherited: dict[str, str],
    *,
    slots: int = 2,
    cpus: int = 8,
    accelerator: str = "cpu",
    keep_freed_memory: bool = False,
) -> dict[str, str]:
    gang = Gang([Host("a", slots), Host("b", slots)], 1, "10.0.0.1", 29500)
    run = RunFolder(Path("/run/sftjob"))
    return rank_environment(
        inherited, gang, 1, accelerator=accelerator, run=run, cpus=cpus, keep_freed_memory=keep_freed_memory
    )


@pytest.mark.parametrize(("cpus", "threads"), [(8, "4"), (3, "1"), (1, "1")])
def test_ranks_share_the_pods_cpus(cpus: int, threads: str) -> None:
    assert environment({}, cpus=cpus)["OMP_NUM_THREADS"] == threads


def test_what_the_user_set_wins_over_our_defaults_but_not_over_the_gang() -> None:
    result = environment({"OMP_NUM_THREADS": "7", "RANK": "0", "NCCL_DEBUG": "WARN"})
    assert (result["OMP_NUM_THREADS"], result["RANK"], result["NCCL_DEBUG"]) == ("7", "3", "WARN")


def test_only_ranks_without_gpu_are_told_that_they_have_none() -> None:
    assert environment({})["DS_ACCELERATOR"] == "cpu"
    assert "DS_ACCELERATOR" not in environment({}, accelerator="gpu")


def test_the_allocator_keeps_freed_memory_only_where_told_and_not_over_the_users_word() -> None:
    assert "GLIBC_TUNABLES" not in environment({})
    assert "glibc.malloc.mmap_max=0" in environment({}, keep_freed_memory=True)["GLIBC_TUNABLES"].split(":")
    users = {"GLIBC_TUNABLES": "glibc.malloc.arena_max=1"}
    assert environment(users, keep_freed_memory=True)["GLIBC_TUNABLES"] == users["GLIBC_TUNABLES"]


@pytest.mark.parametrize("name", ["PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF"])
def test_torchs_allocator_is_set_up_on_gpus_only_and_not_over_the_users_word(name: str) -> None:
    assert "expandable_segments:True" in environment({}, accelerator="gpu")["PYTORCH_ALLOC_CONF"]
    assert "PYTORCH_ALLOC_CONF" not in environment({})
    users = {name: "max_split_size_mb:128"}
    made = environment(users, accelerator="gpu")
    assert {key: value for key, value in made.items() if "ALLOC_CONF" in key} == users


@pytest.mark.processes
def test_torch_knows_the_settings_of_its_allocator() -> None:
    script = "import torch; print(torch._C._accelerator_getAllocatorSettings())"
    variables = environment(dict(os.environ), accelerator="gpu")
    command = [sys.executable, "-c", script]
    said = subprocess.run(command, env=variables, capture_output=True, check=True, text=True).stdout
    assert said.strip() == variables["PYTORCH_ALLOC_CONF"]


@pytest.mark.processes
def test_the_allocator_settings_are_understood_and_save_page_faults() -> None:
    script = (
        "import ctypes, resource\n"
        "for _ in range(20):\n"
        "    ctypes.memset(ctypes.create_string_buffer(32 << 20), 1, 32 << 20)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)\n"
    )

    def faults(keep: bool) -> int:
        variables = environment(dict(os.environ), keep_freed_memory=keep)
        command = [sys.executable, "-c", script]
        return int(subprocess.run(command, env=variables, capture_output=True, check=True, text=True).stdout)

    assert faults(keep=True) < faults(keep=False) / 2


def test_the_inherited_environment_is_left_as_it_was() -> None:
    before = dict(os.environ)
    environment(dict(os.environ))
    assert dict(os.environ) == before


@pytest.mark.parametrize(
    ("inherited", "accelerator", "visible"),
    [
        ({}, "gpu", "0,1"),
        ({"CUDA_VISIBLE_DEVICES": "4,5,6"}, "gpu", "4,5"),
        ({"CUDA_VISIBLE_DEVICES": "GPU-b7, MIG-1/2/0"}, "gpu", "GPU-b7,MIG-1/2/0"),
        ({}, "cpu", "0,1"),
        ({"CUDA_VISIBLE_DEVICES": ""}, "cpu", ""),
    ],
    ids=["none", "more-than-ranks", "by-name", "cpu", "cpu-hidden"],
)
def test_ranks_use_the_gpus_that_the_pod_was_given(
    inherited: dict[str, str], accelerator: str, visible: str
) -> None:
    assert environment(inherited, accelerator=accelerator)["CUDA_VISIBLE_DEVICES"] == visible


@pytest.mark.parametrize("given", ["", "3"])
def test_fewer_gpus_than_ranks_are_refused(given: str) -> None:
    with pytest.raises(UserError, match="the pod runs 2 ranks with a GPU each"):
        environment({"CUDA_VISIBLE_DEVICES": given}, accelerator="gpu")
