"""The command `sftjob delete`: a job, its pods, and what only it has used. What was interrupted is finished by the next."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console

from sftjob_operator.api.names import LABEL_JOB
from sftjob_operator.cli import aio, jobs
from sftjob_operator.cli.errors import CliError
from sftjob_operator.cli.place import Place
from sftjob_operator.cli.session import LOOK_SECONDS
from sftjob_operator.cluster.base import Key, Manifest, Ref, ref_of
from sftjob_operator.cluster.local import LocalCluster
from sftjob_operator.cluster.local.errors import StateError
from sftjob_operator.cluster.local.lock import exclusive
from sftjob_operator.desired.claim import claim_name_in
from sftjob_operator.pods import lost_pods, named

REMOTE_SECONDS = 1.0
_CHILDREN = (("batch/v1", "Job"), ("v1", "Pod"), ("v1", "ConfigMap"), ("v1", "Service"))
_GIVEN = ("PersistentVolumeClaim", "Secret")
"""What `sftjob run` has put beside the job."""


def delete(state: Path, key: Key, console: Console) -> None:
    """On this machine: the job and all that belongs to it; what it left in the workspace stays."""
    try:
        with exclusive(state):
            aio.run(_delete(LocalCluster(state), key))
    except StateError as error:
        raise CliError(str(error)) from None
    except OSError as error:
        raise CliError(
            f"--state {state} cannot be written: {error}; then give the same command again"
        ) from None
    console.print(f"{key.name} is deleted; its files in the workspace stay", markup=False, highlight=False)


async def remote(place: Place, name: str, wait: bool, console: Console) -> None:
    """In a cluster: its children follow; what it left on the volume stays."""
    job = await jobs.find(place, name)
    await place.client.delete(jobs.ref(place, name), uid=job["metadata"]["uid"])
    lost = await _until_gone(place, name, console) if wait else []
    words = "is deleted" if wait else "is being deleted"
    if lost:
        words += f" but for {named(lost)}, which does not answer: what is on it goes when the node is back or removed"
    console.print(
        f"{name} {words}; its files on the volume stay", markup=False, highlight=False, soft_wrap=True
    )


async def _until_gone(place: Place, name: str, console: Console) -> Sequence[Manifest]:
    """Wait for its pods, saying for which; what is left then are those whose nodes have died."""
    said: set[str] = set()
    while pods := await jobs.pods(place, name):
        lost = lost_pods(pods, datetime.now(UTC))
        if len(lost) == len(pods):
            return lost
        waited = {str(pod["metadata"]["name"]) for pod in pods}
        if waited != said:
            said = waited
            console.print(f"waiting for {named(pods)}", markup=False, highlight=False, soft_wrap=True)
        await asyncio.sleep(REMOTE_SECONDS)
    return []


async def _delete(cluster: LocalCluster, key: Key) -> None:
    job = cluster.sftjob(key)
    if job is not None:
        await cluster.delete(ref_of(job))
    elif not await _left(cluster, key) and not _events(cluster, key):
        known = [other.name for other in cluster.keys() if other.namespace == key.namespace]
        raise CliError(jobs.missing(key.name, key.namespace, f"this machine ({cluster.state})", known))
    while await _left(cluster, key):
        cluster.tick()
        await asyncio.sleep(LOOK_SECONDS)
    for ref in [*_events(cluster, key), *_stale_events(cluster), *await _unused(cluster, key.namespace)]:
        await cluster.delete(ref)


async def _left(cluster: LocalCluster, key: Key) -> list[Manifest]:
    """Its children; an earlier deletion may have ended between the job and them."""
    labels = {LABEL_JOB: key.name}
    found = [await cluster.list(api, kind, key.namespace, labels) for api, kind in _CHILDREN]
    return [item for items in found for item in items]


def _events(cluster: LocalCluster, key: Key) -> list[Ref]:
    about = {"namespace": key.namespace, "name": key.name}
    return [ref_of(item) for item in cluster.events() if about.items() <= item["involvedObject"].items()]


def _stale_events(cluster: LocalCluster) -> list[Ref]:
    """About pods that are gone."""
    alive = {pod["metadata"]["uid"] for pod in cluster.pods()}
    about = ((item, item["involvedObject"]) for item in cluster.events())
    return [ref_of(item) for item, pod in about if pod["kind"] == "Pod" and pod["uid"] not in alive]


async def _unused(cluster: LocalCluster, namespace: str) -> list[Ref]:
    """Claims and Secrets that no job of the namespace names any more."""
    jobs = [cluster.sftjob(key) or {} for key in cluster.keys() if key.namespace == namespace]
    specs = json.dumps([[job["spec"], claim_name_in(job)] for job in jobs if job])
    found = [item for kind in _GIVEN for item in await cluster.list("v1", kind, namespace, {})]
    return [ref_of(item) for item in found if json.dumps(item["metadata"]["name"]) not in specs]
