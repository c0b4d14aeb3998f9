"""The quota of a namespace: who holds a share of it, who waits, and whose turn it is.

A share is held by what has a gang of pods or is between two attempts: it is never taken away again, whatever the
quota becomes. All others stand in one line by creation, and a job starts when there is room for it beside those that
hold *and* those that wait before it. So nobody is passed in what he waits for, and a large gang gets its turn; only
who asks for nothing of what is short passes.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from typing import NamedTuple

from pydantic import ValidationError

from sftjob_operator.api import names
from sftjob_operator.api.objects import Manifest
from sftjob_operator.api.status import Status
from sftjob_operator.api.v1alpha1 import SFTJob
from sftjob_operator.api.v1alpha1.workers import Workers
from sftjob_operator.observe import holds, newest_attempt
from sftjob_operator.planning.batch import SpecError
from sftjob_operator.policy.decision import Decision, not_running
from sftjob_operator.policy.restart import RESIZED
from sftjob_operator.quotas import Quota
from sftjob_operator.settings import Settings
from sftjob_operator.world import Standing, World

_AGAIN_SECONDS = 60.0  # for its place in the line: when there is room it is called
_NAMED = 3


class _Short(NamedTuple):
    """What there is too little of."""

    what: str
    limit: int
    asked: int


def standing(body: Manifest) -> Standing | None:
    """Where this SFTJob stands, by its status alone; None = it neither holds nor waits."""
    metadata, spec = body["metadata"], body.get("spec") or {}
    if metadata.get("deletionTimestamp") or spec.get("managedBy") not in (None, names.MANAGER):
        return None
    try:
        status = Status.model_validate(body.get("status") or {})
        workers = Workers.model_validate(spec.get("workers") or {})
    except ValidationError:
        return None
    holding = holds(status)
    gpus = asked(workers)
    if holding:
        gpus = max(present(status, workers), gpus if _is_resizing(status) else 0)
    elif not _is_waiting(status) or spec.get("suspend") or _is_paused(metadata):
        return None
    return Standing(metadata["name"], str(metadata.get("creationTimestamp", "")), gpus, holding)


def asked(workers: Workers) -> int:
    """GPUs that an attempt of this spec takes."""
    return workers.nodes * workers.gpus_per_node


def present(status: Status, workers: Workers) -> int:
    """GPUs of the present attempt, whatever the spec asks for by now."""
    if status.gpus is not None:
        return status.gpus
    return (status.nodes or 0) * workers.gpus_per_node  # of an operator that did not write them down


def next_in_line(quota: Quota, standings: Collection[Standing]) -> list[str]:
    """Who waits and has room now."""
    found, ahead = [], [each for each in standings if each.holds]
    for waiting in _line(quota, standings):
        if _short(quota, ahead, waiting.gpus) is None:
            found.append(waiting.name)
        ahead.append(waiting)
    return found


def too_large(job: SFTJob, settings: Settings) -> SpecError | None:
    """Why this job would not start if it had the whole quota of its namespace; None = it would."""
    workers = job.spec.workers
    short = _short(settings.quotas.of(job.namespace), (), asked(workers))
    if short is None:
        return None
    ways = "ask the platform's owner for another quota"
    if short.what == "jobs":
        words = f"namespace {job.namespace} may have no SFTJobs: create it in another namespace, or {ways}"
    else:
        size = f"nodes {workers.nodes} x gpusPerNode {workers.gpus_per_node}"
        words = (
            f"spec.workers asks for {short.asked} GPUs ({size}), and namespace {job.namespace} may have {short.limit} "
            f"at a time: ask for fewer, or {ways}"
        )
    return SpecError("NamespaceQuotaTooSmall", words)


def no_room(world: World, gpus: int) -> Decision | None:
    """The wait for a share of the quota before pods are made, or let go on; None = there is room, or it has its share."""
    if world.has_share:
        return None  # and asks for no more than that: `within_share`
    job, quota = world.job, world.settings.quotas.of(world.job.namespace)
    mine = (str(job.metadata.get("creationTimestamp", "")), job.name)
    before = [each for each in _line(quota, world.neighbours) if _order(each) < mine]
    short = _short(quota, [*_holders(world), *before], gpus)
    if short is None:
        return None
    after = f", after {_listed([each.name for each in before])}" if before else ""
    place = f"it is number {len(before) + 1} in the line{after}, and starts by itself"
    message = f"{_words(world, short)}; {place}"
    return Decision(job.status, not_running("NamespaceQuota", message), requeue=_AGAIN_SECONDS)


def no_room_to_grow(world: World) -> str | None:
    """Why a gang that has its share is not replaced by a larger one; those that wait and have nothing come first."""
    job, quota = world.job, world.settings.quotas.of(world.job.namespace)
    line = _line(quota, world.neighbours)
    others, has = [*_holders(world), *line], present(job.status, job.spec.workers)
    short = _short(quota, others, asked(job.spec.workers), has)
    if short is None:
        return None
    first = f", and before it waits {_listed([each.name for each in line])}" if line else ""
    return f"{_words(world, short)}{first}"


def within_share(world: World) -> World:
    """With the nodes that it holds in place of more, for which there is no room: a restart is no way past the line."""
    job, nodes = world.job, world.job.status.nodes
    if not world.has_share or nodes is None or no_room_to_grow(world) is None:
        return world
    workers = job.spec.workers.model_copy(update={"nodes": nodes})
    spec = job.spec.model_copy(update={"workers": workers})
    return replace(world, job=job.model_copy(update={"spec": spec}))


def _short(quota: Quota, others: Collection[Standing], gpus: int, has: int | None = None) -> _Short | None:
    """What there is too little of beside `others`; `has` are the GPUs of a share that is held, None = there is none."""
    if has is None and quota.jobs is not None and len(others) >= quota.jobs:
        return _Short("jobs", quota.jobs, 1)
    taken = sum(other.gpus for other in others)
    if quota.gpus is not None and gpus > (has or 0) and taken + gpus > quota.gpus:
        return _Short("GPUs", quota.gpus, gpus)
    return None


def _line(quota: Quota, standings: Iterable[Standing]) -> list[Standing]:
    """Those that wait, the first first; for one that the whole quota would be too small for nobody else waits."""
    waiting = (each for each in standings if not each.holds and _short(quota, (), each.gpus) is None)
    return sorted(waiting, key=_order)


def _order(one: Standing) -> tuple[str, str]:
    return one.created, one.name


def _holders(world: World) -> list[Standing]:
    return [each for each in world.neighbours if each.holds]


def _words(world: World, short: _Short) -> str:
    holders = sorted(_holders(world), key=_order)
    if short.what == "jobs":
        used, shares = len(holders), [each.name for each in holders]
    else:
        used, shares = (
            sum(each.gpus for each in holders),
            [f"{each.name} {each.gpus}" for each in holders if each.gpus],
        )
    who = f" ({_listed(shares)})" if shares else ""
    return (
        f"namespace {world.job.namespace} may have {short.limit} {short.what} at a time: {used} in use{who}, "
        f"{short.asked} asked for"
    )


def _listed(words: Sequence[str]) -> str:
    more = f" and {len(words) - _NAMED} more" if len(words) > _NAMED else ""
    return ", ".join(words[:_NAMED]) + more


def _is_resizing(status: Status) -> bool:
    """Whether its gang gives way to one of another size, which may be larger."""
    newest = newest_attempt(status)
    return _running(status) == "Resizing" or (newest is not None and newest.reason == RESIZED)


def _is_waiting(status: Status) -> bool:
    """One that cannot be worked on any more is in nobody's way."""
    accepted = all(each.status == "True" for each in status.conditions if each.type == "Accepted")
    return accepted and is_in_line(status)


def is_in_line(status: Status) -> bool:
    """Whether it was told to wait for a share when it was last looked at."""
    return _running(status) == "NamespaceQuota"


def _running(status: Status) -> str | None:
    return next((condition.reason for condition in status.conditions if condition.type == "Running"), None)


def _is_paused(metadata: Manifest) -> bool:
    return (metadata.get("annotations") or {}).get(names.ANNOTATION_PAUSED) == "true"
