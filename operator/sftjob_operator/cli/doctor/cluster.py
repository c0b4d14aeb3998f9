"""What `sftjob doctor` makes of a cluster: from the objects that the person may see to checks. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sftjob_operator.api.crd import crd
from sftjob_operator.api.objects import Manifest
from sftjob_operator.cli.doctor import gpus
from sftjob_operator.cli.doctor.check import Check, Listed
from sftjob_operator.cli.doctor.rights import Right
from sftjob_operator.reports import parse_time

LEASE_SECONDS = 60.0
_SHARED = (
    *("nfs", "efs.csi", "cephfs", "filestore", "azurefile", "file.csi.azure", "fsx", "lustre", "juicefs"),
    *(
        "weka",
        "beegfs",
        "gpfs",
        "spectrumscale",
        "glusterfs",
        "longhorn",
        "portworx",
        "vast",
        "netapp",
        "quobyte",
    ),
)
"""Words in the names of provisioners that can make ReadWriteMany volumes."""


@dataclass(frozen=True)
class Facts:
    """What was asked of the API server."""

    where: str
    namespace: str
    now: datetime
    version: str
    serves_sftjobs: bool
    crd: Manifest | None = None
    """None: not there, or not to be read."""
    deployments: Listed = None
    leases: Listed = None
    rights: Mapping[Right, bool] | None = None
    nodes: Listed = None
    claims: Listed = None
    storage_classes: Listed = None
    kueue: bool = False
    queues: Listed = None
    prometheus: bool = False


def checks(facts: Facts) -> Iterator[Check]:
    """In the order in which they matter."""
    yield Check("API server", "ok", f"Kubernetes {facts.version}, {facts.where}")
    yield _kind(facts)
    yield _operator(facts)
    yield from _rights(facts)
    yield from gpus.checks(facts.nodes)
    yield _volume(facts)
    yield _queue(facts)
    found = "its operator is there" if facts.prometheus else "no Prometheus operator found"
    fix = "" if facts.prometheus else "nothing, if Prometheus scrapes by annotations; see docs/install.md"
    yield Check("Prometheus", "ok" if facts.prometheus else "unknown", found, fix)


def _kind(facts: Facts) -> Check:
    install = (
        "install the operator's chart: helm install sftjob charts/sftjob -n sftjob-system --create-namespace"
    )
    if not facts.serves_sftjobs:
        return Check("SFTJob CRD", "missing", "the cluster does not serve sftjob.dev/v1alpha1", install)
    if facts.crd is None:
        return Check("SFTJob CRD", "ok", "served (its schema may not be read)")
    mine, theirs = _schema(crd()), _schema(facts.crd)
    if mine != theirs:
        more = ", ".join(sorted(_spec_fields(mine) ^ _spec_fields(theirs))[:5])
        what = f" (fields of spec: {more})" if more else ""
        fix = "install CRD, operator and this command of one release"
        return Check("SFTJob CRD", "warning", f"served, of another release than this command{what}", fix)
    return Check("SFTJob CRD", "ok", "served, of the same release as this command")


def _schema(manifest: Manifest) -> Manifest:
    """Without descriptions, which a release may correct."""
    version = manifest["spec"]["versions"][0]
    stripped: Manifest = _without(version["schema"]["openAPIV3Schema"], "description")
    return stripped


def _without(value: Any, key: str) -> Any:
    if isinstance(value, dict):
        # Properties may be called like the key, and are objects.
        return {k: _without(v, key) for k, v in value.items() if k != key or isinstance(v, dict)}
    return [_without(item, key) for item in value] if isinstance(value, list) else value


def _spec_fields(schema: Manifest) -> set[str]:
    return set(schema.get("properties", {}).get("spec", {}).get("properties", {}))


def _operator(facts: Facts) -> Check:
    name = "operator"
    if facts.deployments is None:
        return Check(name, "unknown", "you may not list deployments, so it cannot be looked for")
    if not facts.deployments:
        fix = "helm install sftjob charts/sftjob -n sftjob-system --create-namespace"
        return Check(name, "missing", "no deployment is labelled app.kubernetes.io/name=sftjob", fix)
    found = facts.deployments[0]
    where = f"{found['metadata']['namespace']}/{found['metadata']['name']}"
    ready, wanted = found.get("status", {}).get("readyReplicas", 0), found["spec"].get("replicas", 1)
    look = f"kubectl -n {found['metadata']['namespace']} describe pods -l app.kubernetes.io/name=sftjob"
    if not ready:
        return Check(name, "missing", f"{where}: 0 of {wanted} replicas are ready", look)
    image = found["spec"]["template"]["spec"]["containers"][0].get("image", "")
    said = f"{where}: {ready} of {wanted} replicas ready, image {image}"
    leading = _leader(facts)
    if leading is None:
        return Check(name, "ok", said)
    holder, age = leading
    if not holder or age > LEASE_SECONDS:
        return Check(name, "missing", f"{said}; nobody leads (the Lease is {age:.0f} s old)", look)
    return Check(name, "ok", f"{said}; {holder} leads")


def _leader(facts: Facts) -> tuple[str, float] | None:
    for lease in facts.leases or ():
        spec = lease.get("spec", {})
        renewed = parse_time(spec.get("renewTime"))
        if renewed is not None:
            return str(spec.get("holderIdentity") or ""), (facts.now - renewed).total_seconds()
    return None


def _rights(facts: Facts) -> Iterator[Check]:
    if facts.rights is None:
        yield Check("your rights", "unknown", "the cluster does not tell what you may do")
        return
    for needed, state in ((True, "missing"), (False, "warning")):
        lacking = [right for right, given in facts.rights.items() if not given and right.is_needed is needed]
        if not lacking:
            continue
        uses = ", ".join(dict.fromkeys(right.use for right in lacking))
        words = ", ".join(f"{right.verb} {_resource(right)}" for right in lacking)
        fix = f"ask for the role edit in {facts.namespace}: kubectl create rolebinding NAME --clusterrole=edit --user=YOU"
        yield Check(
            "your rights",
            "missing" if state == "missing" else "warning",
            f"not allowed: {words} ({uses})",
            fix,
        )
    if all(facts.rights.values()):
        yield Check("your rights", "ok", f"all that the commands need in {facts.namespace}")


def _resource(right: Right) -> str:
    return f"{right.resource}/{right.subresource}" if right.subresource else right.resource


def _volume(facts: Facts) -> Check:
    name = "shared volume"
    if facts.claims is None:
        return Check(name, "unknown", "you may not list PersistentVolumeClaims")
    shared = [
        f"{claim['metadata']['name']} ({claim.get('status', {}).get('phase', '?')})"
        for claim in facts.claims
        if "ReadWriteMany" in claim["spec"].get("accessModes", [])
    ]
    if shared:
        return Check(name, "ok", f"ReadWriteMany in {facts.namespace}: {', '.join(shared[:5])}")
    able = [
        str(each["metadata"]["name"])
        for each in facts.storage_classes or ()
        if any(word in str(each.get("provisioner", "")).lower() for word in _SHARED)
    ]
    way = f" with storageClassName {' or '.join(able[:3])}" if able else ""
    hint = (
        "" if able else "; no storage class here looks able to (NFS, CephFS, EFS, Filestore, Azure Files can)"
    )
    fix = f"create a PersistentVolumeClaim with accessModes [ReadWriteMany]{way}, and name it in spec.workspace.claimName"
    return Check(name, "warning", f"no ReadWriteMany claim in {facts.namespace}{hint}", fix)


def _queue(facts: Facts) -> Check:
    if not facts.kueue:
        return Check("Kueue", "unknown", "not installed: jobs start as soon as there is room")
    names = [str(queue["metadata"]["name"]) for queue in facts.queues or ()]
    if not names:
        fix = f"create a LocalQueue in {facts.namespace}, and label jobs kueue.x-k8s.io/queue-name"
        return Check("Kueue", "warning", f"installed, no LocalQueue in {facts.namespace}", fix)
    return Check("Kueue", "ok", f"LocalQueues in {facts.namespace}: {', '.join(names[:5])}")
