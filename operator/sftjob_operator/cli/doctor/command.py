"""The command `sftjob doctor`: asks the place, prints the checks; exit code 1 when something needed is missing."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TypeVar

from rich.console import Console
from rich.text import Text

from sftjob_operator.api.v1alpha1 import API_VERSION, GROUP, PLURAL
from sftjob_operator.cli.doctor import cluster, machine
from sftjob_operator.cli.doctor.check import Check
from sftjob_operator.cli.doctor.cluster import Facts
from sftjob_operator.cli.doctor.rights import RIGHTS, Right
from sftjob_operator.cli.errors import FAILED, OK, UNKNOWN, CliError
from sftjob_operator.cli.place import Place, Where, opened
from sftjob_operator.cli.session import now
from sftjob_operator.cluster.base import Ref, Rejected
from sftjob_operator.cluster.person import KubernetesClient

T = TypeVar("T")
_LABELS = {"app.kubernetes.io/name": "sftjob"}
_MARKS = {"ok": ("✓", "green"), "warning": ("!", "yellow"), "missing": ("✗", "red"), "unknown": ("·", "dim")}


async def doctor(where: Where, as_json: bool, console: Console) -> int:
    """0 when nothing that is needed is missing."""
    if where.is_local:
        found = list(machine.checks(Path.cwd()))
    else:
        found = await _of_cluster(where)
    if as_json:
        console.print(
            json.dumps([asdict(each) for each in found], indent=1),
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
    else:
        show(found, console)
    return FAILED if any(each.state == "missing" for each in found) else OK


async def _of_cluster(where: Where) -> list[Check]:
    try:
        async with opened(where) as place:
            return list(cluster.checks(await gather(place)))
    except CliError as error:
        if error.code != UNKNOWN:
            raise
        fix = "check the network (a VPN?), the kubeconfig and its context: kubectl cluster-info"
        return [Check("API server", "missing", str(error), fix)]


def show(found: Sequence[Check], console: Console) -> None:
    """For a person: a line each, and under it what to do."""
    width = max(len(each.name) for each in found)
    for each in found:
        mark, style = _MARKS[each.state]
        line = Text.assemble((mark, style), " ", (f"{each.name:{width}}", "bold"), "  ", each.found)
        console.print(line, soft_wrap=True)
        if each.fix:
            console.print(f"  {'':{width}}  -> {each.fix}", markup=False, highlight=False, soft_wrap=True)


async def gather(place: Place) -> Facts:
    """What the person may not see is None."""
    client = place.client
    assert isinstance(client, KubernetesClient)
    deployments = await _maybe(client.list("apps/v1", "Deployment", "", _LABELS))
    leases = None
    for found in deployments or ():
        leases = await _maybe(
            client.list("coordination.k8s.io/v1", "Lease", found["metadata"]["namespace"], {})
        )
        leases = [each for each in leases or () if each["metadata"]["name"] == found["metadata"]["name"]]
    kueue = [
        version
        for version in ("v1beta2", "v1beta1")
        if await _serves(client, "kueue.x-k8s.io", version, "localqueues")
    ]
    name = f"{PLURAL}.{GROUP}"
    return Facts(
        where=place.words,
        namespace=place.namespace,
        now=now(),
        version=await client.version(),
        serves_sftjobs=await client.serves(API_VERSION, PLURAL),
        crd=await _maybe(client.get(Ref("apiextensions.k8s.io/v1", "CustomResourceDefinition", "", name))),
        deployments=deployments,
        leases=leases,
        rights=await _rights(place),
        nodes=await _maybe(client.list("v1", "Node", "", {})),
        claims=await _maybe(client.list("v1", "PersistentVolumeClaim", place.namespace, {})),
        storage_classes=await _maybe(client.list("storage.k8s.io/v1", "StorageClass", "", {})),
        kueue=bool(kueue),
        queues=await _maybe(client.list(f"kueue.x-k8s.io/{kueue[0]}", "LocalQueue", place.namespace, {}))
        if kueue
        else None,
        prometheus=await _serves(client, "monitoring.coreos.com", "v1", "podmonitors"),
    )


async def _rights(place: Place) -> Mapping[Right, bool] | None:
    answers: dict[Right, bool] = {}
    for right in RIGHTS:
        asked = {
            "namespace": place.namespace,
            "verb": right.verb,
            "group": right.group,
            "resource": right.resource,
            "subresource": right.subresource,
        }
        review = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SelfSubjectAccessReview",
            "metadata": {"name": "", "namespace": ""},
            "spec": {"resourceAttributes": asked},
        }
        answer = await _maybe(place.client.create(review))
        if answer is None:
            return None
        answers[right] = bool(answer.get("status", {}).get("allowed"))
    return answers


async def _serves(client: KubernetesClient, group: str, version: str, plural: str) -> bool:
    return bool(await _maybe(client.serves(f"{group}/{version}", plural)))


async def _maybe(work: Awaitable[T]) -> T | None:
    """None for what the person may not see; an API server that does not answer is another matter."""
    try:
        return await work
    except Rejected:
        return None
