"""The pod through which a person's terminal reads a job's volume. Pure.

It is made of the template of the job's own pods, so that image, pull secrets, node selection and the user's
podTemplate are those that are known to work there; and it is less than they are: the volume read-only (but to clean
it), no service account's token, no GPU unless asked for, no label the operator looks at, and an end by itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sftjob_operator.api import names
from sftjob_operator.api.objects import Manifest
from sftjob_operator.desired.podspec import CONFIG

LABEL_READER = "sftjob.dev/reader-of"
MANAGED_BY = "sftjob-cli"
DEADLINE_SECONDS = 3600
_CPU, _MEMORY = "1", "1Gi"
_DROPPED = ("config", "shm")
_KEPT = (
    *("containers", "volumes", "securityContext", "imagePullSecrets", "nodeSelector", "tolerations"),
    *("priorityClassName", "schedulerName", "runtimeClassName"),
)


def reader(
    job: Manifest,
    template: Manifest,
    token: str,
    resources: Manifest | None = None,
    *,
    writable: bool = False,
) -> Manifest:
    """The pod for `job`; `template` is that of one of its Jobs, `token` tells two terminals apart."""
    name, spec = job["metadata"]["name"], template["spec"]
    owner = {
        "apiVersion": job["apiVersion"],
        "kind": job["kind"],
        "name": name,
        "uid": job["metadata"]["uid"],
    }
    pod = {key: spec[key] for key in _KEPT if key in spec}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": f"{name}-read-{token}",
            "namespace": job["metadata"]["namespace"],
            "labels": {LABEL_READER: name, names.LABEL_MANAGED_BY: MANAGED_BY},
            "ownerReferences": [owner],  # it goes with the job, if all else fails
        },
        "spec": {
            **pod,
            "restartPolicy": "Never",
            "activeDeadlineSeconds": DEADLINE_SECONDS,
            "terminationGracePeriodSeconds": 1,
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "containers": [_container(spec["containers"][0], resources, writable)],
            "volumes": [one for one in spec.get("volumes", []) if one["name"] not in _DROPPED],
        },
    }


def _container(theirs: Mapping[str, Any], resources: Manifest | None, writable: bool) -> Manifest:
    kept = ("image", "imagePullPolicy", "env", "securityContext")
    mounts = [dict(one) for one in theirs.get("volumeMounts", []) if one["name"] not in _DROPPED]
    for mount in mounts:
        if mount["name"] == "workspace" and not writable:
            mount["readOnly"] = True
    return {
        **{key: theirs[key] for key in kept if key in theirs},
        "name": names.CONTAINER,
        "command": ["python", "-m", "sft_trainer", "volume"],
        "env": [one for one in theirs.get("env", []) if one.get("value") != CONFIG],
        "resources": resources or {"requests": {"cpu": _CPU, "memory": _MEMORY}},
        "stdin": True,
        "stdinOnce": True,  # it ends when the terminal is gone
        "volumeMounts": mounts,
    }
