"""From a container's manifest to a process: paths, variables, addresses, and what of the user's shell stays out."""

from __future__ import annotations

import socket
import sys
from pathlib import Path
from typing import Any

import pytest

from sft_trainer.config import METRICS_PORT
from sftjob_operator.cluster.local import addresses, environment, node, objects
from sftjob_operator.cluster.local.errors import StateError
from sftjob_operator.cluster.local.store import Store
from sftjob_operator.cluster.local.volumes import Mount

MOUNTS = [
    Mount("/workspace", Path("/real/ws")),
    Mount("/workspace/models", Path("/real/models")),
    Mount("/tmp", Path("/real/tmp")),
]


def command(container: dict[str, Any], base: dict[str, str] | None = None) -> environment.Command:
    pod = {"metadata": {"name": "p", "namespace": "n"}, "spec": {"containers": [container]}}

    def lookup(kind: str, name: str) -> dict[str, str]:
        return {"Secret": {"TOKEN": "s3cret"}, "ConfigMap": {"MODE": name}}[kind]

    return environment.command(pod, MOUNTS, base or {}, lookup, environment.downward_fields(pod))


@pytest.mark.parametrize(
    ("text", "real"),
    [
        ("/workspace", "/real/ws"),
        ("/workspace/a/b", "/real/ws/a/b"),
        ("/workspace/models/x", "/real/models/x"),
        ("/workspaces/a", "/workspaces/a"),
        ("see /workspace", "see /workspace"),
        ("", ""),
    ],
)
def test_only_a_word_that_is_a_mounted_path_or_below_one_is_rewritten(text: str, real: str):
    assert environment.real_path(text, MOUNTS) == real


def test_command_and_arguments_find_their_files_and_this_python():
    found = command({"command": ["python", "-m", "x"], "args": ["--data", "/workspace/d", "$(MODE)", "$$(MODE)", "$(NO)"],
                     "env": [{"name": "MODE", "value": "fast"}], "workingDir": "/workspace"})  # fmt: skip
    assert found.argv == [sys.executable, "-m", "x", "--data", "/real/ws/d", "fast", "$(MODE)", "$(NO)"]
    assert found.cwd == "/real/ws"


def test_variables_come_from_everywhere_and_the_manifest_wins():
    container = {
        "command": ["x"],
        "envFrom": [{"secretRef": {"name": "s"}}, {"configMapRef": {"name": "c"}, "prefix": "C_"}],
        "env": [
            {"name": "HOME", "value": "/workspace/home"},
            {"name": "POD", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
            {"name": "KEY", "valueFrom": {"secretKeyRef": {"name": "s", "key": "TOKEN"}}},
            {"name": "JOINED", "value": "$(POD)/$(TOKEN)"},
        ],
    }
    env = command(container, {"HOME": "/home/me", "PATH": "/bin"}).env
    assert env == {
        "PATH": "/bin", "HOME": "/real/ws/home", "TOKEN": "s3cret", "C_MODE": "c", "POD": "p", "KEY": "s3cret",
        "JOINED": "p/s3cret", "TMPDIR": "/real/tmp",
    }  # fmt: skip


def test_of_the_users_shell_only_the_machine_is_seen():
    shell = {
        "PATH": "/bin",
        "LANG": "C.UTF-8",
        "AWS_SECRET_ACCESS_KEY": "x",
        "PYTHONPATH": "/mine",
        "OMP_NUM_THREADS": "8",
    }
    found = environment.machine(shell, ["/src"])
    assert found["PYTHONPATH"] == "/src"
    assert {"PATH", "LANG"} <= found.keys()
    assert not {"AWS_SECRET_ACCESS_KEY", "OMP_NUM_THREADS"} & found.keys()


def test_addresses_avoid_those_taken_and_those_in_use():
    first = addresses.allocate("seed", [])
    assert addresses.allocate("seed", []) == first
    second = addresses.allocate("seed", [first])
    assert second != first
    with socket.socket() as held:
        held.bind((first, METRICS_PORT))
        held.listen()
        assert addresses.allocate("seed", []) == second


def test_names_stand_in_the_hosts_file_once_their_service_is_there(tmp_path: Path):
    pod = {
        "metadata": {"name": "j-0-x", "namespace": "n"},
        "spec": {"hostname": "j-0", "subdomain": "j"},
        "status": {"podIP": "127.0.0.9", "phase": "Running"},
    }
    store = Store(tmp_path)
    assert addresses.hosts([pod], store) == ""
    store.put(
        {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "j", "namespace": "n", "uid": "u"}}
    )
    assert addresses.hosts([pod], store) == "127.0.0.9 j-0.j j-0.j.n j-0.j.n.svc j-0.j.n.svc.cluster.local\n"
    assert addresses.hosts([{**pod, "status": {**pod["status"], "phase": "Failed"}}], store) == ""


def test_the_store_is_found_again_by_the_next_process(tmp_path: Path):
    store, seen = Store(tmp_path), []
    store.on_change(lambda item: seen.append(item["metadata"]["resourceVersion"]))
    first = store.put(
        {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": "a", "namespace": "n"},
            "data": {"k": "ä"},
        }
    )
    assert store.put(first) == first, "an unchanged object keeps its version"
    again = Store(tmp_path)
    assert again.select("v1", "Secret") == [first]
    assert again.version == store.version
    assert seen == ["1"]
    (tmp_path / "secret" / "n" / "a.json").write_text("{")
    with pytest.raises(StateError, match=r"a\.json does not hold a stored object"):
        Store(tmp_path)


@pytest.mark.parametrize(
    ("own", "files", "limits"),
    [
        ("0::/a/b\n", {"a/b/memory.max": "max", "a/memory.max": "5000"}, [5000]),
        ("0::/\n", {"memory.max": "7000"}, [7000]),
        ("0::/../outside\n", {}, []),
        ("5:cpu,memory:/a\n4:cpu:/a\n", {"memory/a/memory.limit_in_bytes": "9000"}, [9000]),
    ],
    ids=["v2", "v2-root", "elsewhere", "v1"],
)
def test_the_memory_of_this_machine_is_what_its_control_groups_allow(
    tmp_path: Path, own: str, files: dict[str, str], limits: list[int]
):
    (tmp_path / "own").write_text(own)
    for name, text in files.items():
        (tmp_path / "mount" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "mount" / name).write_text(text)
    assert list(node.memory_limits(tmp_path / "own", tmp_path / "mount")) == limits
    assert node.memory_bytes() > 0


@pytest.mark.parametrize(
    ("target", "patch", "result"),
    [
        ({"a": {"b": 1, "c": 2}}, {"a": {"b": None}}, {"a": {"c": 2}}),
        ({"a": [1, 2]}, {"a": [3]}, {"a": [3]}),
        ({"a": 1}, {"a": {"b": 1}}, {"a": {"b": 1}}),
        ({}, {"a": {"b": None}}, {"a": {}}),
    ],
)
def test_merge_patches_follow_rfc_7396(target: Any, patch: Any, result: Any):
    assert objects.merge_patch(target, patch) == result
