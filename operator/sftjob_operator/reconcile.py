"""One pass over one SFTJob: look at the whole world, ask the pure core, carry out what it says, write status
once.

This is the only sequence of effects, the same for a real cluster and for local processes. It decides nothing:
what to read is `needs`, what to do is `step`. It never retries; the queue does.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime

from sft_trainer.config import Progress
from sftjob_operator.api.v1alpha1 import KIND, SFTJob
from sftjob_operator.cluster.base import (
    AlreadyExists,
    Cluster,
    ClusterError,
    Conflict,
    Key,
    Manifest,
    NotFound,
    Ref,
    Rejected,
    View,
    ref_of,
    sftjobs_of,
)
from sftjob_operator.effects import Apply, Check, Create, Delete, Effect, Patch
from sftjob_operator.freshness import Freshness
from sftjob_operator.gpus import Gpus
from sftjob_operator.needs import Needs, needs
from sftjob_operator.places import Places
from sftjob_operator.planning.hardware import Hardware
from sftjob_operator.policy.accept import read_sftjob
from sftjob_operator.polling import ProgressPoller
from sftjob_operator.settings import Settings
from sftjob_operator.step import Step, broken, step, unreadable
from sftjob_operator.worker import subject
from sftjob_operator.world import NAME_TAKEN, Refusal, World

logger = logging.getLogger(__name__)

_STALE_SECONDS = 1.0

HardwareSource = Callable[[SFTJob], Awaitable[Hardware]]


class Taken(Rejected):
    """A child's name is held by an object of another owner."""

    def __init__(self, ref: Ref, owner: Manifest | None) -> None:
        """`owner` is the ownerReference of its controller."""
        whose = "is not of this SFTJob"
        if owner is not None:
            earlier = "an earlier " if owner["kind"] == KIND else ""
            whose = f"belongs to {earlier}{owner['kind']} {owner['name']}"
        super().__init__(409, NAME_TAKEN, f"{ref.kind} {ref.name} exists already and {whose}")


class Reconciler:
    """`reconcile` may run for different keys at the same time, never for the same: the queue sees to that."""

    def __init__(
        self,
        cluster: Cluster,
        view: View,
        settings: Settings,
        *,
        hardware: HardwareSource | None = None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        watch_lag: Callable[[float], None] = lambda _: None,
        call: Callable[[Key], None] = lambda _: None,
    ) -> None:
        """`hardware` tells what the planner plans for; default: the settings, else the nodes' labels. `watch_lag`
        is told how long the watch takes to show our own writes; `call` is told whose turn it is in a namespace with
        a quota.
        """
        self._cluster, self._view, self._settings, self._now = cluster, view, settings, now
        self._hardware = hardware or Gpus(cluster, settings)
        self._fresh = Freshness(watch_lag)
        self._poller = ProgressPoller(cluster, settings.poll_seconds)
        self.places = Places(view, settings.quotas, call)

    @property
    def progress(self) -> Mapping[Key, Progress]:
        """What the trainers said last, of those that are training."""
        return self._poller.latest

    async def reconcile(self, key: Key) -> float | None:
        """One pass; seconds after which the key wants another if nothing happens. Raises ClusterError."""
        body = self._view.sftjob(key)
        if body is None or body["metadata"].get("deletionTimestamp"):
            self._forget(key)  # its children are collected through their ownerReferences
            return None
        jobs = self._view.jobs(key)
        wait = self._fresh.wait(key, [body, *jobs])
        if wait > 0:
            return wait
        try:
            next_step = await self._carry_out(key, body, jobs)
        except ClusterError:
            self.places.settle(
                key, body
            )  # nothing was written: what was decided does not count for the others
            raise
        except Exception as error:  # a defect of ours: said where its owner looks, then the worker's to log
            await self._tell(key, body, self._settled(key, body, broken(body, error, self._now())))
            raise
        try:
            is_there = await self._tell(key, body, next_step)
        except Conflict as error:  # no failure: the view lags behind the spec, and is about to show it
            logger.info("%s", error, extra=subject(key))
            return _STALE_SECONDS
        return self._again(key, next_step.requeue_after) if is_there else None

    def _again(self, key: Key, after: float | None) -> float | None:
        """When to come back: `after`, or for the next poll, which a pass in between must not put off."""
        poll = self._poller.due(key)
        return after if after is None or poll is None else min(after, poll)

    async def _tell(self, key: Key, body: Manifest, planned: Step) -> bool:
        """Status, then Events; False when the SFTJob is gone."""
        if not await self._write_status(key, body, planned):
            return False
        for event in planned.events:
            logger.info(
                "%s: %s", event.reason, event.message, extra=subject(key, body["metadata"].get("uid"))
            )
            await self._cluster.emit_event(body, event)
        return True

    async def _carry_out(self, key: Key, body: Manifest, jobs: Sequence[Manifest]) -> Step:
        """The step of this pass, its effects done; where a child was refused, the step that says so."""
        try:
            job = read_sftjob(body)
        except ValueError as error:
            return self._settled(key, body, unreadable(body, str(error), self._now()))
        world = await self._look(key, job, jobs)
        planned = self._decide(key, body, world)
        refusal = await self._do_all(key, body, planned)
        if refusal is None:
            return planned
        logger.warning(
            "%s %s was refused: %s", refusal.ref.kind, refusal.ref.name, refusal.message, extra=subject(key)
        )
        planned = self._decide(key, body, replace(world, refusal=refusal))
        await self._do_all(key, body, planned)
        return planned

    def _decide(self, key: Key, body: Manifest, world: World) -> Step:
        """Without an await: two workers do not see the same last place of a quota."""
        return self._settled(key, body, step(replace(world, neighbours=self.places.neighbours(key))))

    def _settled(self, key: Key, body: Manifest, planned: Step) -> Step:
        """What it comes to counts for the others of the namespace from now on."""
        self.places.settle(key, body if planned.status is None else {**body, "status": planned.status})
        return planned

    async def _look(self, key: Key, job: SFTJob, jobs: Sequence[Manifest]) -> World:
        now = self._now()
        need = needs(job, jobs, now)
        unseen = [found for ref in need.jobs if (found := await self._cluster.get(ref)) is not None]
        return World(
            job=job,
            now=now,
            jobs=[*jobs, *unseen],
            sftjobs=sftjobs_of(self._view, key.namespace) if need.sftjobs else (),
            pods=await self._pods(key, need) if need.pods else None,
            prerequisites={ref: await self._find(ref) for ref in need.prerequisites},
            progress=await self._progress(key, need),
            hardware=await self._hardware(job) if need.hardware else Hardware(),
            settings=self._settings,
        )

    async def _find(self, ref: Ref) -> Manifest | None:
        """None = not there. What may not be read is taken to be there: the pods will say if it is not."""
        try:
            return await self._cluster.get(ref)
        except Rejected as error:
            if error.code != 403:
                raise
            return {}

    async def _pods(self, key: Key, need: Needs) -> Sequence[Manifest]:
        return await self._cluster.list("v1", "Pod", key.namespace, dict(need.pod_labels))

    async def _progress(self, key: Key, need: Needs) -> Progress | None:
        if need.progress:
            return await self._poller.poll(key, need.pod_labels)
        self._poller.forget(key)
        return None

    async def _do_all(self, key: Key, body: Manifest, planned: Step) -> Refusal | None:
        """The effects in order, up to the first that is refused."""
        for effect in planned.effects:
            try:
                await self._do(key, body, effect)
            except (AlreadyExists, NotFound, Conflict) as error:
                # What was to be changed is gone or has changed: the next pass looks again. But what was to be
                # made is not there (the namespace is going, a quota was being counted): the queue tries again.
                if not isinstance(effect, Patch | Delete):
                    raise
                logger.info("%s", error, extra=subject(key))
            except Rejected as error:
                return Refusal(_target(effect), error.code, error.reason, error.message)
        return None

    async def _do(self, key: Key, body: Manifest, effect: Effect) -> None:
        match effect:
            case Create(manifest):
                self._fresh.wrote(key, await self._create(body, manifest))
            case Check(manifest):
                await self._check(manifest)
            case Apply(manifest):
                await self._apply(body, manifest)  # never a Job: nothing in the view waits for it
            case Patch(ref, patch):
                self._fresh.wrote(key, await self._cluster.patch(ref, patch))
            case Delete(ref, uid, foreground):
                await self._cluster.delete(ref, uid=uid, foreground=foreground)
                if not foreground:
                    self._fresh.deleted(key, uid)

    async def _check(self, manifest: Manifest) -> None:
        """A dry run. A name that is taken is the business of the creation."""
        try:
            await self._cluster.create(manifest, dry_run=True)
        except AlreadyExists:
            return
        except Rejected as error:
            # A webhook with side effects cannot be asked: then the creation itself has to tell.
            if not (error.code == 400 and "does not support dry run" in error.message):
                raise

    async def _create(self, body: Manifest, manifest: Manifest) -> Manifest:
        """Create, or find that an earlier pass did."""
        try:
            return await self._cluster.create(manifest)
        except AlreadyExists:
            there = await self._own(body, ref_of(manifest))
        if not await self._is_left_over(there, manifest):
            return there
        await self._cluster.delete(ref_of(there), uid=there["metadata"]["uid"])
        return await self._cluster.create(manifest)

    async def _apply(self, body: Manifest, manifest: Manifest) -> None:
        """Create, or bring up to date what an earlier pass created; a forced apply alone would take over
        whatever has this name.
        """
        try:
            await self._cluster.create(manifest)
        except AlreadyExists:
            await self._own(body, ref_of(manifest))
            await self._cluster.apply(manifest)

    async def _own(self, body: Manifest, ref: Ref) -> Manifest:
        """Our object that holds this name; Taken where it is someone else's."""
        there = await self._cluster.get(ref)
        if there is None:
            raise ClusterError(f"{ref.kind} {ref.name} was there, and is gone")
        owner = _controller(there)
        if owner is None or owner["uid"] != body["metadata"]["uid"]:
            raise Taken(ref, owner)
        return there

    async def _is_left_over(self, there: Manifest, manifest: Manifest) -> bool:
        """A ConfigMap whose Job was never made: the spec has changed since, and it cannot."""
        if manifest["kind"] != "ConfigMap" or there.get("data") == manifest["data"]:
            return False
        ref = ref_of(manifest)
        return await self._cluster.get(Ref("batch/v1", "Job", ref.namespace, ref.name)) is None

    async def _write_status(self, key: Key, body: Manifest, planned: Step) -> bool:
        """False when the SFTJob is gone. Conflict when its spec is newer than what this pass has looked at: a
        start must not freeze what nobody has read.
        """
        if planned.status is None or planned.status == body.get("status"):
            return True
        try:
            metadata = body["metadata"]
            written = await self._cluster.patch_status(
                ref_of(body), planned.status, uid=metadata["uid"], generation=metadata.get("generation")
            )
        except NotFound:
            self._forget(key)
            return False
        self._fresh.wrote(key, written)
        return True

    def _forget(self, key: Key) -> None:
        self._fresh.forget(key)
        self._poller.forget(key)
        self.places.settle(key, None)


def _target(effect: Effect) -> Ref:
    return ref_of(effect.manifest) if isinstance(effect, Create | Check | Apply) else effect.ref


def _controller(manifest: Manifest) -> Manifest | None:
    owners = manifest["metadata"].get("ownerReferences") or ()
    return next((owner for owner in owners if owner.get("controller")), None)
