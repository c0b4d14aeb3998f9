"""Which replica works: a coordination.k8s.io Lease, held by renewing it in time.

An own small loop, because the one of `kubernetes.aio` lets the leader work on when a dropped connection ends
its task, and waits for an answer longer than any lease lasts. Here every request has a limit below the renew
deadline, the deadline is on the monotonic clock and counts from before the request, and `hold` returns on
every way to lose.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from sftjob_operator.cluster.base import Cluster, ClusterError, Manifest, Ref

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Timing:
    """Seconds. A leader gives up so early that its lease outlives one more pause and request: never two lead."""

    lease: float = 15.0
    renew_deadline: float = 9.0
    retry: float = 2.0
    request: float = 3.0
    standby: float = 1.0  # a standby looks this often: a Lease that is given up has a new holder so soon

    def __post_init__(self) -> None:
        """Refuse what is unsafe."""
        once = self.request + self.retry
        if not self.lease - once > self.renew_deadline > once:
            raise ValueError(
                "leader election: lease - (request + retry) > renew_deadline > request + retry must hold"
            )


class Election:
    """One candidate. `acquire`, then `hold` for as long as it leads, then `release`."""

    def __init__(
        self,
        cluster: Cluster,
        lease: Ref,
        identity: str,
        *,
        timing: Timing = Timing(),
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """`identity` must differ between replicas (the pod's name)."""
        self._cluster, self._ref, self._identity = cluster, lease, identity
        self._timing, self._now = timing, now
        self._seen: tuple[object, ...] = ()  # holder and renew time as last read
        self._seen_at = 0.0  # when they last changed, on our own clock: clocks of replicas differ
        self._renewed_at = 0.0  # on our own clock: just before the request that last took or renewed it
        self.leading = False

    async def acquire(self) -> None:
        """Wait until this replica leads."""
        while not await self._try():
            await asyncio.sleep(self._timing.standby)
        self.leading = True
        logger.info("leading as %s", self._identity)

    async def hold(self) -> str:
        """Renew until leadership is lost; the reason. The caller must stop all work at once."""
        loop = asyncio.get_running_loop()
        try:
            while True:
                deadline = self._renewed_at + self._timing.renew_deadline
                await asyncio.sleep(min(self._timing.retry, max(deadline - loop.time(), 0.0)))
                left = deadline - loop.time()
                if left <= 0:
                    return f"the Lease could not be renewed for {self._timing.renew_deadline:g} s"
                if not await self._try(within=left) and self._seen and self._seen[0] != self._identity:
                    return f"the Lease was taken by {self._seen[0] or 'nobody'}"
        finally:
            self.leading = False

    async def release(self) -> None:
        """Give the Lease up, so that a standby need not wait for it to expire; best effort."""
        self.leading = False
        try:
            async with asyncio.timeout(1.0):
                lease = await self._cluster.get(self._ref)
                if lease is None or _holder(lease) != self._identity:
                    return
                await self._write(lease, {"holderIdentity": "", "leaseDurationSeconds": 1})
                logger.info("lease released")
        except (ClusterError, TimeoutError) as error:
            logger.warning("the Lease could not be released: %s", error or type(error).__name__)

    async def _try(self, within: float | None = None) -> bool:
        limit = self._timing.request if within is None else min(self._timing.request, within)
        started = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(limit):
                taken = await self._take()
        except (ClusterError, TimeoutError) as error:
            logger.warning("leader election: %s", error or type(error).__name__)
            return False
        if taken:
            self._renewed_at = started
        return taken

    async def _take(self) -> bool:
        """Create, take over or renew the Lease; False when another holds it. Conflict: another was faster."""
        lease = await self._cluster.get(self._ref)
        spec = {
            "holderIdentity": self._identity,
            "leaseDurationSeconds": round(self._timing.lease),
            "renewTime": self._now().astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        }
        if lease is None:
            spec["acquireTime"] = spec["renewTime"]
            metadata = {"namespace": self._ref.namespace, "name": self._ref.name}
            kind = {"apiVersion": self._ref.api, "kind": self._ref.kind}
            self._observe(await self._cluster.create({**kind, "metadata": metadata, "spec": spec}))
            return True
        self._observe(lease)
        holder = _holder(lease)
        if holder != self._identity:
            if self.leading or (holder and not self._expired(lease)):
                return False
            spec["acquireTime"] = spec["renewTime"]
            spec["leaseTransitions"] = int(lease.get("spec", {}).get("leaseTransitions") or 0) + 1
        self._observe(await self._write(lease, spec))
        return True

    def _observe(self, lease: Manifest) -> None:
        seen = (_holder(lease), lease.get("spec", {}).get("renewTime"))
        if seen != self._seen:
            self._seen, self._seen_at = seen, asyncio.get_running_loop().time()

    def _expired(self, lease: Manifest) -> bool:
        duration = float(lease.get("spec", {}).get("leaseDurationSeconds") or self._timing.lease)
        return asyncio.get_running_loop().time() - self._seen_at > duration

    async def _write(self, lease: Manifest, spec: Manifest) -> Manifest:
        version = lease["metadata"]["resourceVersion"]
        return await self._cluster.patch(self._ref, {"metadata": {"resourceVersion": version}, "spec": spec})


def _holder(lease: Manifest) -> str:
    return str(lease.get("spec", {}).get("holderIdentity") or "")


def lease_ref(namespace: str, name: str) -> Ref:
    """The address of the Lease."""
    return Ref("coordination.k8s.io/v1", "Lease", namespace, name)
