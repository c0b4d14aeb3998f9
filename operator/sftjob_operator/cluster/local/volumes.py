"""A pod's volumes as directories of this machine: a PVC is the directory it is bound to, a ConfigMap becomes files."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from pathlib import Path

from sftjob_operator.cluster.base import Manifest, Ref
from sftjob_operator.cluster.local.store import Store

BOUND_TO = "sftjob.dev/local-directory"
"""Annotation of a PersistentVolumeClaim: the directory that is the volume."""


class NotYetError(Exception):
    """The pod cannot start now; `reason` and `message` as the scheduler or the kubelet would say it."""

    def __init__(self, reason: str, message: str, *, scheduled: bool = True) -> None:
        """`scheduled`: whether the pod has a node already, which decides where the words go."""
        super().__init__(message)
        self.reason, self.message, self.scheduled = reason, message, scheduled


@dataclass(frozen=True)
class Mount:
    """What a container sees at `path` is `real`."""

    path: str
    real: Path


def mounts(pod: Manifest, directory: Path, store: Store) -> list[Mount]:
    """Every mount of the pod's container, its files in place below `directory`; NotYetError while something is missing."""
    volumes = {volume["name"]: volume for volume in pod["spec"].get("volumes", [])}
    namespace = pod["metadata"]["namespace"]
    result = []
    for mount in pod["spec"]["containers"][0].get("volumeMounts", []):
        real = _real(volumes[mount["name"]], namespace, directory / "volumes", store)
        if "subPath" in mount:
            real /= str(mount["subPath"])
            if not real.exists():
                real.mkdir(parents=True)
        result.append(Mount(mount["mountPath"].rstrip("/") or "/", real))
    return result


def claim_directory(claim: Manifest) -> Path | None:
    """The directory a PersistentVolumeClaim is bound to."""
    bound = claim["metadata"].get("annotations", {}).get(BOUND_TO)
    return None if bound is None else Path(bound)


def _real(volume: Manifest, namespace: str, directory: Path, store: Store) -> Path:
    if "persistentVolumeClaim" in volume:
        return _claim(volume["persistentVolumeClaim"]["claimName"], namespace, store)
    if "hostPath" in volume:
        return Path(str(volume["hostPath"]["path"]))
    real = directory / str(volume["name"])
    real.mkdir(parents=True, exist_ok=True)
    if "configMap" in volume:
        source = volume["configMap"]
        _write(real, _content("ConfigMap", source["name"], namespace, store), source)
    elif "secret" in volume:
        source = volume["secret"]
        _write(real, _content("Secret", source["secretName"], namespace, store), source)
    return real


def _claim(name: str, namespace: str, store: Store) -> Path:
    claim = store.get(Ref("v1", "PersistentVolumeClaim", namespace, name))
    bound = None if claim is None else claim_directory(claim)
    if bound is None:
        missing = f'persistentvolumeclaim "{name}" not found'
        raise NotYetError("Unschedulable", f"0/1 nodes are available: {missing}.", scheduled=False)
    if not bound.is_dir():
        raise NotYetError("FailedMount", f"the directory {bound} of claim {name} does not exist")
    return bound


def content(kind: str, name: str, namespace: str, store: Store) -> dict[str, bytes] | None:
    """The keys of a ConfigMap or Secret; None when it is not there."""
    found = store.get(Ref("v1", kind, namespace, name))
    if found is None:
        return None
    encoded = found.get("data" if kind == "Secret" else "binaryData") or {}
    plain = (found.get("data") or {}) if kind == "ConfigMap" else {}
    return {
        **{key: base64.b64decode(value) for key, value in encoded.items()},
        **{key: value.encode() for key, value in plain.items()},
    }


def _content(kind: str, name: str, namespace: str, store: Store) -> dict[str, bytes]:
    found = content(kind, name, namespace, store)
    if found is None:
        raise NotYetError("FailedMount", f'{kind.lower()} "{name}" not found')
    return found


def _write(real: Path, files: dict[str, bytes], source: Manifest) -> None:
    items = source.get("items") or [{"key": key, "path": key} for key in files]
    for item in items:
        if item["key"] not in files:
            raise NotYetError("FailedMount", f"references non-existent config key: {item['key']}")
        path = real / item["path"]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(files[item["key"]])
        path.chmod(0o600)
