"""What the planner is told about GPUs."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from sftjob_operator.api.v1alpha1 import SFTJob
from sftjob_operator.cluster.base import ClusterError, Manifest, Rejected
from sftjob_operator.gpus import COUNT_LABEL, MAJOR_LABEL, MEMORY_LABEL, REPLICAS_LABEL, Gpus
from sftjob_operator.settings import Settings
from shell.fake_cluster import FakeCluster

pytestmark = pytest.mark.looptime


def sftjob(**workers: Any) -> SFTJob:
    spec = {
        "model": {"path": "m"},
        "data": {"train": [{"path": "d.jsonl"}]},
        "workers": workers,
        "workspace": {"claimName": "c"},
    }
    return SFTJob.model_validate(
        {
            "apiVersion": "sftjob.dev/v1alpha1",
            "kind": "SFTJob",
            "metadata": {"namespace": "team", "name": "bot", "uid": "u", "generation": 1},
            "spec": spec,
        }
    )


def node(name: str, mebibytes: str | None, **labels: str) -> Manifest:
    found = labels | ({MEMORY_LABEL: mebibytes} if mebibytes else {})
    return {"apiVersion": "v1", "kind": "Node", "metadata": {"namespace": "", "name": name, "labels": found}}


async def test_the_smallest_gpu_counts() -> None:
    cluster = FakeCluster()
    for number, size in enumerate(("81559", "24564", None, "much")):
        cluster.put(node(f"n{number}", size))
    hardware = await Gpus(cluster, Settings())(sftjob(gpusPerNode=8))
    assert hardware.gpu_memory_bytes == 24564 * 2**20


async def test_only_nodes_the_job_may_run_on_count() -> None:
    cluster = FakeCluster()
    cluster.put(node("small", "24564", pool="a"))
    cluster.put(node("large", "81559", pool="b"))
    job = sftjob(podTemplate={"spec": {"nodeSelector": {"pool": "b"}}})
    assert (await Gpus(cluster, Settings())(job)).gpu_memory_bytes == 81559 * 2**20


@pytest.mark.parametrize(
    ("labels", "counts"),
    [
        ({COUNT_LABEL: "1"}, False),
        ({COUNT_LABEL: "1", REPLICAS_LABEL: "4"}, False),
        ({COUNT_LABEL: "2", REPLICAS_LABEL: "4"}, True),
        ({COUNT_LABEL: "8", REPLICAS_LABEL: "1"}, True),
        ({COUNT_LABEL: "many"}, True),
        ({}, True),
    ],
    ids=str,
)
async def test_a_node_with_fewer_gpus_than_a_pod_asks_for_does_not_count(
    labels: dict[str, str], counts: bool
) -> None:
    cluster = FakeCluster()
    cluster.put(node("dev", "15360", **labels, **{MAJOR_LABEL: "7"}))
    cluster.put(node("large", "81559", **{COUNT_LABEL: "8", MAJOR_LABEL: "9"}))
    hardware = await Gpus(cluster, Settings())(sftjob(gpusPerNode=8))
    assert hardware.gpu_memory_bytes == (15360 if counts else 81559) * 2**20
    assert hardware.gpu_bf16 is not counts


async def test_a_cordoned_node_does_not_count() -> None:
    cluster = FakeCluster()
    cluster.put(node("small", "24564") | {"spec": {"unschedulable": True}})
    cluster.put(node("large", "81559"))
    assert (await Gpus(cluster, Settings())(sftjob())).gpu_memory_bytes == 81559 * 2**20


async def test_required_affinity_counts_as_the_node_selector_does() -> None:
    cluster = FakeCluster()
    cluster.put(node("small", "24564", pool="a"))
    cluster.put(node("large", "81559", pool="b"))
    terms = [{"matchExpressions": [{"key": "pool", "operator": "NotIn", "values": ["a"]}]}]
    required = {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}
    job = sftjob(podTemplate={"spec": {"affinity": {"nodeAffinity": required}}})
    assert (await Gpus(cluster, Settings())(job)).gpu_memory_bytes == 81559 * 2**20


@pytest.mark.parametrize(
    ("resource", "expected"),
    [
        ("amd.com/gpu", None),
        ("amd.com/mig-1g.10gb", None),
        ("nvidia.com/gpu.shared", None),
        ("nvidia.com/mig-1g.10gb", 10 * 10**9),
        ("nvidia.com/mig-1c.3g.40gb", 40 * 10**9),
        ("nvidia.com/mig-1g.12gb.me", 12 * 10**9),
    ],
)
async def test_the_labels_speak_of_whole_nvidia_gpus_only_and_slices_say_their_memory(
    resource: str, expected: int | None
) -> None:
    cluster = FakeCluster()
    cluster.put(node("n", "81559"))
    hardware = await Gpus(cluster, Settings())(sftjob(gpuResourceName=resource))
    assert hardware.gpu_memory_bytes == expected
    assert hardware.gpu_bf16 is (True if expected else None)
    assert cluster.calls == []


@pytest.mark.parametrize(
    ("majors", "bf16"),
    [(["9", "8"], True), (["9", "7"], False), ([], None)],
    ids=["H100 and A100", "H100 and T4", "no labels"],
)
async def test_the_oldest_gpu_decides_on_bf16(majors: list[str], bf16: bool | None) -> None:
    cluster = FakeCluster()
    cluster.put(node("cpu", None))
    for number, major in enumerate(majors):
        cluster.put(node(f"n{number}", "16384", **{MAJOR_LABEL: major}))
    assert (await Gpus(cluster, Settings())(sftjob())).gpu_bf16 is bf16


async def test_a_list_that_failed_is_asked_for_again_and_not_taken_for_an_empty_one() -> None:
    cluster = FakeCluster()
    cluster.put(node("n", "81559"))
    cluster.fail("list", "Node", ClusterError("503"))
    gpus = Gpus(cluster, Settings())
    with pytest.raises(ClusterError):
        await gpus(sftjob())
    assert (await gpus(sftjob())).gpu_memory_bytes == 81559 * 2**20


async def test_the_setting_beats_the_nodes_which_are_not_even_read() -> None:
    cluster = FakeCluster()
    hardware = await Gpus(cluster, Settings(gpu_memory="80Gi"))(sftjob())
    assert hardware.gpu_memory_bytes == 80 * 2**30
    assert cluster.calls == []


async def test_a_job_on_cpus_reads_no_nodes() -> None:
    cluster = FakeCluster()
    assert (await Gpus(cluster, Settings())(sftjob(gpusPerNode=0))).gpu_memory_bytes is None
    assert cluster.calls == []


async def test_nodes_are_read_once_in_five_minutes() -> None:
    cluster = FakeCluster()
    cluster.put(node("n", "81559"))
    gpus = Gpus(cluster, Settings())
    for _ in range(3):
        await gpus(sftjob())
        await asyncio.sleep(200)
    assert cluster.calls == [("list", "Node")] * 2


async def test_without_the_right_to_list_nodes_it_is_unknown_and_the_log_says_what_to_do(
    caplog: pytest.LogCaptureFixture,
) -> None:
    cluster = FakeCluster()
    cluster.fail("list", "Node", Rejected(403, "Forbidden", "nodes is forbidden"))
    assert (await Gpus(cluster, Settings())(sftjob())).gpu_memory_bytes is None
    assert "SFTJOB_OPERATOR_GPU_MEMORY" in caplog.text
    assert "nodes is forbidden" in caplog.text


async def test_nodes_without_the_label_are_unknown_and_the_log_says_what_to_do(
    caplog: pytest.LogCaptureFixture,
) -> None:
    cluster = FakeCluster()
    cluster.put(node("n", None))
    assert (await Gpus(cluster, Settings())(sftjob())).gpu_memory_bytes is None
    assert "SFTJOB_OPERATOR_GPU_MEMORY" in caplog.text


def test_a_wrong_setting_is_refused_at_the_start() -> None:
    with pytest.raises(ValueError, match="80 gigs"):
        Gpus(FakeCluster(), Settings(gpu_memory="80 gigs"))
