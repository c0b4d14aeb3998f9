"""Leader election: never two leaders, no leader for long, and every way to lose ends `hold`."""

from __future__ import annotations

import asyncio

import pytest

from sftjob_operator.cluster.base import ClusterError, Manifest, Ref
from sftjob_operator.leader import Election, Timing, lease_ref
from shell.fake_cluster import FakeCluster

pytestmark = pytest.mark.looptime

LEASE = lease_ref("system", "sftjob-operator")


def time() -> float:
    return asyncio.get_running_loop().time()


def holder(cluster: FakeCluster) -> str:
    return str(cluster.objects[LEASE]["spec"]["holderIdentity"])


async def test_the_first_candidate_creates_the_lease_and_leads_at_once() -> None:
    cluster = FakeCluster()
    election = Election(cluster, LEASE, "a")
    await election.acquire()
    assert election.leading
    assert holder(cluster) == "a"
    assert time() < 1


async def test_a_standby_waits_while_the_leader_renews() -> None:
    cluster = FakeCluster()
    leader, standby = Election(cluster, LEASE, "a"), Election(cluster, LEASE, "b")
    await leader.acquire()
    holding = asyncio.create_task(leader.hold())
    waiting = asyncio.create_task(standby.acquire())
    await asyncio.sleep(300)
    assert not holding.done()
    assert not waiting.done()
    for task in (holding, waiting):
        task.cancel()
    await asyncio.gather(holding, waiting, return_exceptions=True)


async def test_a_standby_takes_over_when_the_leader_is_killed_and_not_before_its_lease_has_run_out() -> None:
    cluster = FakeCluster()
    await Election(cluster, LEASE, "a").acquire()  # and is never heard of again
    standby = Election(cluster, LEASE, "b")
    await standby.acquire()
    assert holder(cluster) == "b"
    assert 15 < time() <= 15 + 3
    assert cluster.objects[LEASE]["spec"]["leaseTransitions"] == 1


async def test_a_standby_takes_over_at_its_next_look_when_the_lease_is_released() -> None:
    cluster = FakeCluster()
    leader, standby = Election(cluster, LEASE, "a"), Election(cluster, LEASE, "b")
    await leader.acquire()
    waiting = asyncio.create_task(standby.acquire())
    await asyncio.sleep(5)
    await leader.release()
    released = time()
    await waiting
    assert time() - released <= Timing().standby
    assert holder(cluster) == "b"


async def test_releasing_a_lease_that_another_holds_leaves_it_alone() -> None:
    cluster = FakeCluster()
    await Election(cluster, LEASE, "a").acquire()
    await Election(cluster, LEASE, "b").release()
    assert holder(cluster) == "a"


async def test_a_restarted_leader_with_the_same_name_goes_on_at_once() -> None:
    cluster = FakeCluster()
    await Election(cluster, LEASE, "a").acquire()
    await Election(cluster, LEASE, "a").acquire()
    assert time() < 1


async def test_of_two_candidates_for_an_expired_lease_one_leads() -> None:
    cluster = FakeCluster()
    await Election(cluster, LEASE, "dead").acquire()
    candidates = [Election(cluster, LEASE, name) for name in ("b", "c")]
    tasks = [asyncio.create_task(candidate.acquire()) for candidate in candidates]
    await asyncio.sleep(25)
    assert [candidate.leading for candidate in candidates].count(True) == 1
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_a_stolen_lease_ends_leadership_at_the_next_renewal() -> None:
    cluster = FakeCluster()
    election = Election(cluster, LEASE, "a")
    await election.acquire()
    holding = asyncio.create_task(election.hold())
    await asyncio.sleep(5)
    cluster.update(LEASE, spec={"holderIdentity": "thief", "leaseDurationSeconds": 15, "renewTime": "x"})
    stolen = time()
    assert await holding == "the Lease was taken by thief"
    assert time() - stolen <= Timing().retry
    assert not election.leading
    assert holder(cluster) == "thief"


class Unreachable(FakeCluster):
    """From `broken_at` on it fails in one way, as seen by `who`."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.broken = how, False

    async def get(self, ref: Ref) -> Manifest | None:
        if self.broken and self.how == "hangs":
            await asyncio.sleep(1000)
        if self.broken:
            raise ClusterError("connection reset by peer")
        return await super().get(ref)


@pytest.mark.parametrize("how", ["refuses", "hangs"])
async def test_a_leader_that_cannot_renew_stops_before_another_may_start(how: str) -> None:
    cluster = Unreachable(how)
    election = Election(cluster, LEASE, "a")
    await election.acquire()
    holding = asyncio.create_task(election.hold())
    await asyncio.sleep(21)
    cluster.broken = True
    broken = time()
    assert "could not be renewed" in await holding
    assert Timing().renew_deadline - Timing().retry <= time() - broken
    assert time() - broken <= Timing().renew_deadline, "not a pause later"


async def test_the_first_deadline_counts_from_before_the_request_that_took_the_lease() -> None:
    cluster = Unreachable("refuses")

    async def slowly(manifest: Manifest, *, dry_run: bool = False) -> Manifest:
        await asyncio.sleep(2.5)
        return await FakeCluster.create(cluster, manifest, dry_run=dry_run)

    cluster.create = slowly  # type: ignore[method-assign]
    election = Election(cluster, LEASE, "a")
    await election.acquire()
    assert time() == pytest.approx(2.5, abs=0.1)
    cluster.broken = True
    assert "could not be renewed" in await election.hold()
    assert time() == pytest.approx(Timing().renew_deadline, abs=0.1)


async def test_a_short_outage_does_not_end_leadership() -> None:
    cluster = Unreachable("refuses")
    election = Election(cluster, LEASE, "a")
    await election.acquire()
    holding = asyncio.create_task(election.hold())
    for _ in range(5):
        cluster.broken = True
        await asyncio.sleep(5)
        cluster.broken = False
        await asyncio.sleep(10)
    assert not holding.done()
    holding.cancel()
    await asyncio.gather(holding, return_exceptions=True)


async def test_an_unexpected_error_ends_leadership_too() -> None:
    cluster = FakeCluster()
    election = Election(cluster, LEASE, "a")
    await election.acquire()
    cluster.objects[LEASE]["metadata"].pop("resourceVersion")
    with pytest.raises(KeyError):
        await election.hold()
    assert not election.leading


async def test_a_deleted_lease_is_written_again() -> None:
    cluster = FakeCluster()
    election = Election(cluster, LEASE, "a")
    await election.acquire()
    holding = asyncio.create_task(election.hold())
    del cluster.objects[LEASE]
    await asyncio.sleep(10)
    assert holder(cluster) == "a"
    holding.cancel()
    await asyncio.gather(holding, return_exceptions=True)


def test_timings_that_allow_two_leaders_are_refused() -> None:
    with pytest.raises(ValueError, match="renew_deadline"):
        Timing(lease=10, renew_deadline=10)
    with pytest.raises(ValueError, match="renew_deadline"):
        Timing(lease=15, renew_deadline=10, request=4, retry=2)
    with pytest.raises(ValueError, match="request"):
        Timing(renew_deadline=5, request=4, retry=2)
