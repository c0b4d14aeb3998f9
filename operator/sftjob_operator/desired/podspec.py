"""The pod that both kinds of child run: restricted, without credentials, on the workspace volume.

It passes the `restricted` Pod Security Standard; everything a process writes lies on a volume, so that any
user id works. The user's podTemplate is merged over it, key by key.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sft_trainer import config
from sftjob_operator.api import names
from sftjob_operator.api.base import Quantity
from sftjob_operator.api.objects import Manifest
from sftjob_operator.api.v1alpha1 import SFTJob
from sftjob_operator.api.v1alpha1.pods import EnvVar, PodTemplate, Resources
from sftjob_operator.desired.claim import claim_name
from sftjob_operator.settings import Settings

WORKSPACE = "/workspace"
CONFIG = "/etc/sftjob"
RUN = "/run/sftjob"
TERMINATION_LOG = "/dev/termination-log"
OUR_VOLUMES = ("workspace", "config", "run", "tmp", "shm")
GRACE_SECONDS = 120
_USER = 65532  # nobody's in every image
_RUN_SIZE = "256Mi"  # metrics, progress and HOME: memory that counts towards the pod's limit

# Whatever caches, caches on the pod's own disk: HOME is memory, and the workspace is shared.
_CACHES = {
    "HF_HOME": "/tmp/huggingface",
    "TORCH_EXTENSIONS_DIR": "/tmp/torch-extensions",
    "TORCHINDUCTOR_CACHE_DIR": "/tmp/inductor",
    "TRITON_CACHE_DIR": "/tmp/triton",
    "XDG_CACHE_HOME": "/tmp/cache",
}

# Istio's proxy does not end with the trainer, and would keep the pod and its GPUs for ever.
_NO_SIDECAR = {"sidecar.istio.io/inject": "false"}


@dataclass(frozen=True)
class Part:
    """In what the pods of prepare and of training differ."""

    command: str
    """Subcommand of `python -m sft_trainer`."""
    config_map: str
    labels: dict[str, str]
    resources: Manifest
    env: Sequence[EnvVar]
    template: PodTemplate
    annotations: dict[str, str] = field(default_factory=dict)
    ports: Sequence[Manifest] = ()
    env_from: Sequence[Manifest] = ()
    shared_memory: Quantity | None = None
    spec: Manifest = field(default_factory=dict)
    """Further keys of the pod's spec."""


def pod_template(job: SFTJob, settings: Settings, part: Part) -> Manifest:
    """The PodTemplateSpec."""
    theirs = part.template
    annotations = {**part.annotations, **theirs.metadata.annotations}
    labels = {**_NO_SIDECAR, **theirs.metadata.labels, **part.labels}
    return {
        "metadata": {"labels": labels, **({"annotations": annotations} if annotations else {})},
        "spec": _spec(job, settings, part),
    }


def image(job: SFTJob, settings: Settings) -> str:
    """The trainer image of this job."""
    return job.spec.workers.image or settings.trainer_image


def resources(stated: Resources, more_limits: Mapping[str, Quantity] | None = None) -> Manifest:
    """core/v1 ResourceRequirements; `more_limits` are ours (GPUs)."""
    limits = {**stated.limits, **(more_limits or {})}
    found = {"requests": dict(stated.requests), "limits": limits}
    return {
        key: {name: str(value) for name, value in values.items()} for key, values in found.items() if values
    }


def _spec(job: SFTJob, settings: Settings, part: Part) -> Manifest:
    theirs = part.template.spec
    grace = theirs.termination_grace_period_seconds
    spec: Manifest = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": GRACE_SECONDS if grace is None else grace,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": secured(part.template, settings)["securityContext"],
        **part.spec,
        "containers": [_container(job, settings, part)],
        "volumes": [*_volumes(job, part), *theirs.volumes],
    }
    if job.spec.workers.image_pull_secrets:
        spec["imagePullSecrets"] = [{"name": secret.name} for secret in job.spec.workers.image_pull_secrets]
    scheduling: Manifest = {
        "nodeSelector": dict(theirs.node_selector),
        "tolerations": list(theirs.tolerations),
        "affinity": theirs.affinity,
        "topologySpreadConstraints": list(theirs.topology_spread_constraints),
        "priorityClassName": theirs.priority_class_name,
        "runtimeClassName": theirs.runtime_class_name,
        "schedulerName": theirs.scheduler_name,
    }
    return spec | {key: value for key, value in scheduling.items() if value}


def secured(template: PodTemplate, settings: Settings) -> Manifest:
    """What of the PodSpec decides on the rights of the pod: with the user's part merged over ours."""
    theirs = template.spec
    container = (theirs.containers[0].security_context or {}) if theirs.containers else {}
    return {
        "securityContext": {**_pod_security(settings), **(theirs.security_context or {})},
        "containers": [{"securityContext": {**_container_security(), **container}}],
        "volumes": list(theirs.volumes),
    }


def _container(job: SFTJob, settings: Settings, part: Part) -> Manifest:
    theirs = part.template.spec.containers
    container: Manifest = {
        "name": names.CONTAINER,
        "image": image(job, settings),
        "command": ["python", "-m", "sft_trainer", part.command],
        "env": _environment(part.env),
        "resources": part.resources,
        "terminationMessagePath": TERMINATION_LOG,
        "terminationMessagePolicy": "File",
        "securityContext": secured(part.template, settings)["containers"][0]["securityContext"],
        "volumeMounts": [*_mounts(job, part), *(theirs[0].volume_mounts if theirs else ())],
    }
    if job.spec.workers.image_pull_policy is not None:
        container["imagePullPolicy"] = job.spec.workers.image_pull_policy
    if part.ports:
        container["ports"] = list(part.ports)
    if part.env_from:
        container["envFrom"] = list(part.env_from)
    return container


def _environment(theirs: Sequence[EnvVar]) -> list[Manifest]:
    """Ours, then the user's; a name that stands twice has the user's value."""
    ours: dict[str, Any] = {
        config.ENV_WORKSPACE: WORKSPACE,
        config.ENV_CONFIG: CONFIG,
        config.ENV_RUN: RUN,
        config.ENV_TERMINATION_LOG: TERMINATION_LOG,
        config.ENV_POD_IP: {"fieldRef": {"fieldPath": "status.podIP"}},
        config.ENV_NODE_NAME: {"fieldRef": {"fieldPath": "spec.nodeName"}},
        "HOME": f"{RUN}/home",
        **_CACHES,
    }
    # "As it is": Kubernetes would put another variable's value for $(NAME), and makes one $ of two.
    merged = {**ours, **{variable.name: variable.value.replace("$", "$$") for variable in theirs}}
    return [
        {"name": name, "value": value} if isinstance(value, str) else {"name": name, "valueFrom": value}
        for name, value in merged.items()
    ]


def _volumes(job: SFTJob, part: Part) -> list[Manifest]:
    volumes: list[Manifest] = [
        {"name": "workspace", "persistentVolumeClaim": {"claimName": claim_name(job)}},
        {"name": "config", "configMap": {"name": part.config_map}},
        {"name": "run", "emptyDir": {"medium": "Memory", "sizeLimit": _RUN_SIZE}},
        {"name": "tmp", "emptyDir": {}},
    ]
    if part.shared_memory is not None:
        volumes.append(
            {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": str(part.shared_memory)}}
        )
    return volumes


def _mounts(job: SFTJob, part: Part) -> list[Manifest]:
    workspace: Manifest = {"name": "workspace", "mountPath": WORKSPACE}
    if job.spec.workspace.sub_path is not None:
        workspace["subPath"] = job.spec.workspace.sub_path
    mounts: list[Manifest] = [
        workspace,
        {"name": "config", "mountPath": CONFIG, "readOnly": True},
        {"name": "run", "mountPath": RUN},
        {"name": "tmp", "mountPath": "/tmp"},
    ]
    if part.shared_memory is not None:
        mounts.append({"name": "shm", "mountPath": "/dev/shm"})
    return mounts


def _pod_security(settings: Settings) -> Manifest:
    ids = {"runAsUser": _USER, "runAsGroup": _USER, "fsGroup": _USER} if settings.user_ids == "Fixed" else {}
    return {
        "runAsNonRoot": True,
        **ids,
        "fsGroupChangePolicy": "OnRootMismatch",  # a volume of a million files is not walked at every start
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def _container_security() -> Manifest:
    return {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
