"""Names, ports, cgroups, train.json and the environment variables a launcher is given."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from sft_trainer.errors import Interrupted, PeerLost, UserError
from sft_trainer.launcher import cgroup, inputs, names


class Time:
    """A clock that only pauses move."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def pause(self) -> bool:
        self.now += 1.0
        return True


def failing(times: int, error: Exception, answer: str = "10.0.0.7") -> tuple[names.Lookup, list[str]]:
    asked: list[str] = []

    def find(name: str) -> str:
        asked.append(name)
        if len(asked) <= times:
            raise error
        return answer

    return find, asked


@pytest.mark.parametrize(
    "error",
    [
        socket.gaierror(socket.EAI_NONAME, "Name or service not known"),
        socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution"),
        OSError(116, "Stale file handle"),
    ],
    ids=["NXDOMAIN", "temporary failure", "hosts file"],
)
def test_rank_0_is_waited_for_until_its_name_appears(error: Exception) -> None:
    time = Time()
    find, asked = failing(7, error)
    assert (
        names.wait_for("job-1-0.job", find, deadline_seconds=600, clock=time, pause=time.pause) == "10.0.0.7"
    )
    assert asked == ["job-1-0.job"] * 8


def test_a_name_that_never_appears_is_a_lost_peer() -> None:
    time = Time()
    find, _ = failing(1000, socket.gaierror(socket.EAI_NONAME, "Name or service not known"))
    with pytest.raises(PeerLost, match=r"job-1-0.job, did not appear in 600 s: .*not known"):
        names.wait_for("job-1-0.job", find, deadline_seconds=600, clock=time, pause=time.pause)


def test_a_request_to_stop_ends_the_wait_for_a_name() -> None:
    find, _ = failing(1000, socket.gaierror(socket.EAI_NONAME, "x"))
    with pytest.raises(Interrupted):
        names.wait_for("n", find, deadline_seconds=600, clock=Time(), pause=lambda: False)


def test_the_hosts_file_is_asked_before_dns_and_may_grow(tmp_path: Path) -> None:
    file = tmp_path / "hosts"
    find = names.lookup(file, dns=lambda name: "10.0.0.7")
    assert find("a") == "a"
    file.write_text("# ours\n127.0.0.2 job-1-0.job a # first\n127.0.0.3 a\n")
    assert find("a") == "127.0.0.2"
    assert find("b") == "b"


def test_ranks_get_a_name_that_dns_knows_because_its_address_may_be_of_yesterday() -> None:
    answers = iter(["10.0.0.7", "10.0.0.8"])
    find = names.lookup(None, dns=lambda name: next(answers))
    assert [find("job-1-0.job"), find("job-1-0.job")] == ["job-1-0.job"] * 2


def write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def test_memory_left_is_the_limit_less_what_is_held(tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.write_text("0::/\n")
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("700\n")
    (tmp_path / "memory.stat").write_text("anon 300\ninactive_file 250\n")
    assert cgroup.memory_left(tmp_path, own) == 550
    (tmp_path / "memory.max").write_text("max\n")
    assert cgroup.memory_left(tmp_path, own) is None


def test_oom_kills_are_read_from_both_versions_of_cgroups(tmp_path: Path) -> None:
    own = tmp_path / "cgroup"
    write(own, "5:cpuset:/\n4:memory:/kubepods/pod1\n0::/\n")
    assert cgroup.oom_kills(tmp_path / "none", own) is None
    write(tmp_path / "v1/memory/memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n")
    assert cgroup.oom_kills(tmp_path / "v1", own) == 3  # the container's own root
    write(tmp_path / "v1/memory/kubepods/pod1/memory.oom_control", "oom_kill_disable 0\noom_kill 4\n")
    assert cgroup.oom_kills(tmp_path / "v1", own) == 4
    write(own, "0::/user.slice\n")
    write(tmp_path / "v2/user.slice/memory.events", "low 0\nhigh 0\nmax 12\noom 2\noom_kill 1\n")
    assert cgroup.oom_kills(tmp_path / "v2", own) == 1


def test_cpus_are_bounded_by_the_quota_of_the_cgroup(tmp_path: Path) -> None:
    own = tmp_path / "cgroup"
    all_cpus = len(os.sched_getaffinity(0))
    write(own, "0::/\n")
    write(tmp_path / "v2/cpu.max", "max 100000\n")
    assert cgroup.cpus(tmp_path / "v2", own) == all_cpus
    write(tmp_path / "v2/cpu.max", "50000 100000\n")
    assert cgroup.cpus(tmp_path / "v2", own) == 1
    write(own, "2:cpu,cpuacct:/\n")
    write(tmp_path / "v1/cpu,cpuacct/cpu.cfs_quota_us", "-1\n")
    write(tmp_path / "v1/cpu,cpuacct/cpu.cfs_period_us", "100000\n")
    assert cgroup.cpus(tmp_path / "v1", own) == all_cpus


@pytest.mark.parametrize(("value", "cpus"), [("2", 2), ("", None), ("0", None), ("many", None)])
def test_the_number_of_cpus_may_be_given_where_no_cgroup_says_it(value: str, cpus: int | None) -> None:
    assert inputs.cpus({"SFTJOB_CPUS": value}) == cpus


@pytest.mark.parametrize(
    ("document", "words"),
    [
        pytest.param("{\n oops", "train.json line 2", id="no JSON"),
        pytest.param('{"schemaVersion": 99}', "schemaVersion 99, this trainer knows 1", id="newer schema"),
        pytest.param("[]", "train.json: the document", id="a list"),
        pytest.param('{"attempt": "x"}', "attempt: Input should be a valid integer", id="wrong field"),
    ],
)
def test_a_wrong_train_json_is_refused_by_field(tmp_path: Path, document: str, words: str) -> None:
    write(tmp_path / "train.json", document)
    with pytest.raises(UserError) as caught:
        inputs.read_train_config(tmp_path / "train.json")
    assert words in caught.value.message


def test_a_missing_train_json_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"train\.json cannot be read"):
        inputs.read_train_config(tmp_path / "train.json")


def test_the_node_index_comes_from_the_job_controller() -> None:
    assert inputs.node_index({"JOB_COMPLETION_INDEX": "1"}, nodes=2) == 1
    assert inputs.node_index({}, nodes=1) == 0
    for value in ("2", "-1", "x", "", "\u0661"):
        with pytest.raises(UserError, match="a number from 0 to 1 is needed"):
            inputs.node_index({"JOB_COMPLETION_INDEX": value}, nodes=2)


def test_a_missing_variable_is_named() -> None:
    with pytest.raises(UserError, match="SFTJOB_RUN is not set"):
        inputs.required({}, "SFTJOB_RUN")


@pytest.mark.parametrize("content", [None, "", "{", '{"outcome": "Perhaps"}'])
def test_an_unreadable_marker_is_no_marker(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        write(tmp_path / "0.json", content)
    assert inputs.read_marker(tmp_path / "0.json") is None
