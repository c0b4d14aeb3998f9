"""The controllers beside the kubelet: what the decisions of jobs.py do to the store, and garbage collection."""

from __future__ import annotations

import shutil
from datetime import datetime, timedelta
from pathlib import Path

from sftjob_operator.api.objects import is_finished
from sftjob_operator.cluster.base import Manifest, Ref, ref_of
from sftjob_operator.cluster.local import jobpods, jobs
from sftjob_operator.cluster.local.objects import is_terminating, owner_uids, parse_timestamp, timestamp
from sftjob_operator.cluster.local.store import Store
from sftjob_operator.cluster.local.volumes import BOUND_TO, claim_directory


def asked_to_go(item: Manifest) -> Manifest:
    """The pod, or Job, with a deletion timestamp; its kubelet, or sync_job, does the rest."""
    return {**item, "metadata": {**item["metadata"], "deletionTimestamp": timestamp()}}


def collect_garbage(store: Store) -> None:
    """Remove what lost its last owner. Pods are asked to go, and nobody counts them any more."""
    everything = store.everything()
    alive = {item["metadata"]["uid"] for item in everything}
    for item in everything:
        owners = owner_uids(item)
        if not owners or any(uid in alive for uid in owners):
            continue
        if item["kind"] == "Pod":
            _let_go(store, ref_of(item))
        else:
            store.remove(ref_of(item))


def provision(store: Store, volumes: Path) -> None:
    """A claim that is bound to nothing gets a directory; one that is gone takes the directory made for it along."""
    claims = store.select("v1", "PersistentVolumeClaim")
    for claim in claims:
        if claim_directory(claim) is None:
            ref = ref_of(claim)
            directory = volumes / ref.namespace / ref.name
            directory.mkdir(parents=True, exist_ok=True)
            annotations = {**claim["metadata"].get("annotations", {}), BOUND_TO: str(directory)}
            status = {"phase": "Bound", "accessModes": claim["spec"].get("accessModes", [])}
            store.put(
                {**claim, "metadata": {**claim["metadata"], "annotations": annotations}, "status": status}
            )
    used = {claim_directory(claim) for claim in store.select("v1", "PersistentVolumeClaim")}
    for directory in volumes.glob("*/*"):
        if directory not in used:
            shutil.rmtree(directory, ignore_errors=True)


def sync_job(store: Store, job: Manifest, now: datetime) -> None:
    """Carry out what jobs.sync decides: the status first, so that a failure is known before its pods are gone."""
    ref, uid = ref_of(job), job["metadata"]["uid"]
    pods = [pod for pod in store.select("v1", "Pod", ref.namespace) if uid in owner_uids(pod)]
    if is_terminating(job):
        for left in pods:
            _let_go(store, ref_of(left))
        if not pods:
            store.remove(ref)
        return
    decision = jobs.sync(job, pods, now)
    job = store.put({**job, "status": decision.status})
    for name in decision.release:
        _release(store, Ref("v1", "Pod", ref.namespace, name))
    for name in decision.delete:
        pod = store.get(Ref("v1", "Pod", ref.namespace, name))
        if pod is not None and not is_terminating(pod):
            store.put(asked_to_go(pod))
    for index in decision.create:
        store.put(jobpods.pod(job, index, now))
    if _has_expired(job, now):
        store.remove(ref)


def _release(store: Store, ref: Ref) -> None:
    """Its end is counted, or will not be."""
    pod = store.get(ref)
    if pod is not None and pod["metadata"].get("finalizers"):
        store.put({**pod, "metadata": {**pod["metadata"], "finalizers": []}})


def _let_go(store: Store, ref: Ref) -> None:
    _release(store, ref)
    pod = store.get(ref)
    if pod is not None and not is_terminating(pod):
        store.put(asked_to_go(pod))


def _has_expired(job: Manifest, now: datetime) -> bool:
    limit = job["spec"].get("ttlSecondsAfterFinished")
    if limit is None or not is_finished(job):
        return False
    ends = (item for item in job["status"]["conditions"] if item["type"] in ("Complete", "Failed"))
    ended = min(parse_timestamp(item["lastTransitionTime"]) for item in ends)
    return now - ended >= timedelta(seconds=limit)
