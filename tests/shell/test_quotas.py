"""Quotas of namespaces in the shell: jobs of two namespaces, two workers, a watch that lags, and a new process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from sftjob_operator.cluster.base import ClusterError, Key, Ref, Rejected, ref_of
from sftjob_operator.metrics import Metrics
from sftjob_operator.quotas import Quota, Quotas
from shell.operating import Operator, claim, operating
from worlds import prepared_outcome, sftjob, trained_outcome

pytestmark = pytest.mark.looptime

QUOTAS = Quotas(namespaces={"team": Quota(gpus=8)})


@pytest.fixture
async def operator() -> AsyncIterator[Operator]:
    async with operating(quotas=QUOTAS, gpu_memory="80Gi") as running:
        for namespace in ("team", "other"):
            body = claim()
            body["metadata"]["namespace"] = namespace
            running.cluster.put(body)
        yield running


def job(name: str, gpus: int, namespace: str = "team", **spec: Any) -> dict[str, Any]:
    manifest = sftjob(
        name, workers={"nodes": 1, "gpusPerNode": gpus}, training={"globalBatchSize": 8}, **spec
    )
    manifest["metadata"] |= {"uid": f"uid-of-{name}", "namespace": namespace}
    return manifest


async def apply(operator: Operator, *jobs: dict[str, Any]) -> None:
    """All are prepared at once, and ready to start."""
    for manifest in jobs:
        operator.cluster.put(manifest)
    await asyncio.sleep(1)
    for made in operator.cluster.of_kind("Job"):
        if "-prepare-" in made["metadata"]["name"] and "status" not in made:
            operator.ends(ref_of(made), 0, prepared_outcome())
    await asyncio.sleep(1)


def trainings(operator: Operator) -> list[str]:
    return sorted(name for name in operator.jobs() if "-prepare-" not in name)


def running(operator: Operator, name: str, namespace: str = "team") -> dict[str, Any]:
    body = operator.cluster.sftjob(Key(namespace, name))
    assert body is not None
    return next(item for item in body["status"]["conditions"] if item["type"] == "Running")


def attempt(name: str) -> Ref:
    return Ref("batch/v1", "Job", "team", f"{name}-1")


async def test_each_namespace_has_its_own_and_the_next_one_starts_the_moment_another_ends(
    operator: Operator,
) -> None:
    await apply(
        operator,
        job("a", 4),
        job("b", 4),
        job("c", 8),
        job("d", 4),
        job("e", 8, "other"),
        job("f", 8, "other"),
    )
    assert trainings(operator) == ["a-1", "b-1", "e-1", "f-1"]
    assert running(operator, "c")["reason"] == "NamespaceQuota"
    operator.ends(attempt("a"), 0, trained_outcome())
    await asyncio.sleep(1)
    assert "c-1" not in operator.jobs()
    assert "d-1" not in operator.jobs(), "it would take what c waits for"
    operator.ends(attempt("b"), 0, trained_outcome())
    await asyncio.sleep(1)
    assert "c-1" in operator.jobs()
    await asyncio.sleep(60)
    assert "4 asked for; it is number 1 in the line, and" in running(operator, "d")["message"]


async def test_the_metrics_say_what_is_held_and_what_is_waited_for(operator: Operator) -> None:
    await apply(operator, job("a", 4), job("b", 8), job("c", 4), job("e", 8, "other"))
    assert dict(operator.reconciler.places.shares()) == {
        ("team", "gpus", "limit"): 8,
        ("team", "gpus", "held"): 4,
        ("team", "gpus", "waiting"): 12,
    }
    metrics = Metrics()
    metrics.watch(operator.queue, operator.cluster, {}, operator.reconciler.places.shares)
    line = b'sftjob_operator_quota{namespace="team",resource="gpus",type="waiting"} 12.0'
    assert line in metrics.exposition().splitlines()


async def test_series_of_a_namespace_go_with_its_last_job(operator: Operator) -> None:
    await apply(operator, job("a", 4))
    await operator.cluster.delete(Ref("sftjob.dev/v1alpha1", "SFTJob", "team", "a"))
    await asyncio.sleep(1)
    assert dict(operator.reconciler.places.shares()) == {}
    await apply(operator, job("b", 4))
    assert dict(operator.reconciler.places.shares())["team", "gpus", "held"] == 4


async def test_who_cannot_start_because_the_api_server_fails_is_in_nobodys_way(
    operator: Operator, monkeypatch: pytest.MonkeyPatch
) -> None:
    create = operator.cluster.create

    async def failing(manifest: dict[str, Any], *, dry_run: bool = False) -> dict[str, Any]:
        if dry_run and manifest["metadata"]["name"] == "a-1":
            raise ClusterError("500: a webhook failed")
        return await create(manifest, dry_run=dry_run)

    monkeypatch.setattr(operator.cluster, "create", failing)
    await apply(operator, job("a", 8), job("b", 8))
    await asyncio.sleep(120)
    assert trainings(operator) == ["b-1"]


async def test_a_deletion_and_a_suspension_make_room_at_once(operator: Operator) -> None:
    await apply(operator, job("a", 8), job("b", 8), job("c", 8))
    await operator.cluster.delete(Ref("sftjob.dev/v1alpha1", "SFTJob", "team", "a"))
    await asyncio.sleep(1)
    assert trainings(operator) == ["b-1"]
    spec = operator.cluster.sftjob(Key("team", "b"))["spec"]  # type: ignore[index]
    operator.cluster.update(Ref("sftjob.dev/v1alpha1", "SFTJob", "team", "b"), spec={**spec, "suspend": True})
    await asyncio.sleep(10)
    assert trainings(operator) == ["b-1", "c-1"]
    assert running(operator, "b")["reason"] == "Suspended"


async def test_two_workers_do_not_take_the_same_last_place_while_the_watch_lags(operator: Operator) -> None:
    jobs = [job(name, 4) for name in "abcd"]
    for manifest in jobs:
        operator.cluster.put(manifest)
    await asyncio.sleep(1)
    for made in operator.cluster.of_kind("Job"):
        operator.ends(ref_of(made), 0, prepared_outcome())
    operator.cluster.freeze()  # the news of the preparations is the last that is heard of
    await asyncio.sleep(60)
    assert len(trainings(operator)) <= 2
    operator.cluster.thaw()
    await asyncio.sleep(10)
    assert len(trainings(operator)) == 2


async def test_a_new_process_knows_from_the_status_who_holds_and_who_is_next(operator: Operator) -> None:
    await apply(operator, job("a", 8), job("b", 8), job("c", 8))
    operator.restart(quotas=QUOTAS, gpu_memory="80Gi")
    assert await operator.reconciler.reconcile(Key("team", "c")) == 60
    assert await operator.reconciler.reconcile(Key("team", "b")) == 60
    assert trainings(operator) == ["a-1"]
    assert running(operator, "c")["message"].endswith(
        "it is number 2 in the line, after b, and starts by itself"
    )


async def test_what_is_refused_gives_its_place_to_the_next(operator: Operator) -> None:
    for name in ("a", "b"):
        operator.cluster.put(job(name, 8))
    await asyncio.sleep(1)
    words = Rejected(403, "Forbidden", 'jobs.batch "a-1" is forbidden: exceeded quota: gpus')
    operator.cluster.fail("dry_run", "Job", words, times=1)
    for made in operator.cluster.of_kind("Job"):
        operator.ends(ref_of(made), 0, prepared_outcome())
    await asyncio.sleep(1)
    assert len(trainings(operator)) == 1


async def test_a_larger_quota_of_a_new_process_starts_those_that_waited(operator: Operator) -> None:
    await apply(operator, job("a", 8), job("b", 8))
    operator.restart(quotas=Quotas(gpus=16), gpu_memory="80Gi")
    await operator.reconciler.reconcile(Key("team", "b"))
    await operator.reconciler.reconcile(Key("team", "b"))
    assert trainings(operator) == ["a-1", "b-1"]


@pytest.mark.parametrize("how", ["unreadable", "broken"])
async def test_a_job_that_cannot_be_worked_on_any_more_leaves_the_line(
    operator: Operator, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await apply(operator, job("a", 4), job("b", 8), job("c", 4))
    assert trainings(operator) == ["a-1"]
    b = Ref("sftjob.dev/v1alpha1", "SFTJob", "team", "b")
    spec = operator.cluster.objects[b]["spec"]
    if how == "broken":
        gets = operator.cluster.get

        async def get(ref: Ref) -> Any:
            if ref.name == "of-b":
                raise RuntimeError("a defect")
            return await gets(ref)

        monkeypatch.setattr(operator.cluster, "get", get)
        spec = {**spec, "workspace": {"claimName": "of-b"}}
    else:
        spec = {**spec, "ofTomorrow": True}
    operator.cluster.update(b, spec=spec)
    await asyncio.sleep(5)
    assert trainings(operator) == ["a-1", "c-1"]
