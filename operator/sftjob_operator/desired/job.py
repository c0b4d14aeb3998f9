"""An attempt: one Indexed Job with a pod per node, under names of its own, created once and never changed.

The Job controller creates and tears down the gang; a restart is the next attempt.
"""

from __future__ import annotations

from sft_trainer.config import HOSTFILE, METRICS_PORT, TRAIN_FILE, PrepareResult
from sftjob_operator.api import names
from sftjob_operator.api.objects import Manifest
from sftjob_operator.api.v1alpha1 import SFTJob
from sftjob_operator.desired.children import config_map, digest, job_labels, metadata, queue_labels
from sftjob_operator.desired.config import train_config
from sftjob_operator.desired.failurepolicy import pod_failure_policy
from sftjob_operator.desired.hostfile import hostfile
from sftjob_operator.desired.podspec import Part, pod_template, resources
from sftjob_operator.planning.intent import intent
from sftjob_operator.planning.plan import Plan
from sftjob_operator.settings import Settings

_SCRAPE = {
    "prometheus.io/scrape": "true",
    "prometheus.io/port": str(METRICS_PORT),
    "prometheus.io/path": "/metrics",
}


def attempt_config_map(job: SFTJob, chosen: Plan, facts: PrepareResult, number: int) -> Manifest:
    """train.json and hostfile of attempt `number`."""
    wanted = intent(job.spec)
    files = {
        TRAIN_FILE: train_config(job, chosen, facts, number).to_json(indent=2),
        HOSTFILE: hostfile(job.name, number, wanted.nodes, wanted.processes_per_node),
    }
    labels = names.labels(job.name, names.ROLE_TRAIN, number)
    return config_map(job, names.attempt(job.name, number), labels, files)


def attempt_job(job: SFTJob, settings: Settings, number: int) -> Manifest:
    """The Indexed Job of attempt `number`."""
    name, nodes = names.attempt(job.name, number), job.spec.workers.nodes
    annotations = {names.ANNOTATION_SPEC: attempt_spec(job)}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": metadata(job, name, job_labels(job, names.ROLE_TRAIN, number), annotations),
        "spec": {
            "completionMode": "Indexed",
            "completions": nodes,
            "parallelism": nodes,
            "backoffLimit": 0,
            "podReplacementPolicy": "Failed",
            "podFailurePolicy": pod_failure_policy(),
            "template": pod_template(job, settings, _part(job, name, number)),
        },
    }


def attempt_spec(job: SFTJob) -> str:
    """Digest of what an attempt is made of and the user may change while it is open.

    Nothing of the operator's own is in it, and no default: an upgrade alone must not end an attempt.
    """
    parts = (job.spec.workers, job.spec.checkpoint)
    stated = [part.model_dump(mode="json", by_alias=True, exclude_defaults=True) for part in parts]
    return digest([*stated, queue_labels(job)], 16)


def _part(job: SFTJob, name: str, number: int) -> Part:
    workers = job.spec.workers
    labels = names.labels(job.name, names.ROLE_TRAIN, number)
    gpus = {workers.gpu_resource_name: workers.gpus_per_node} if workers.gpus_per_node else {}
    ranks = workers.gpus_per_node or workers.processes_per_node or 1
    spec: Manifest = {"subdomain": names.service(job.name)}
    if workers.nodes > 1:
        spec["affinity"] = _apart(labels)
    return Part(
        command="launch",
        config_map=name,
        labels=labels,
        resources=resources(workers.resources, gpus),
        env=workers.env,
        template=workers.pod_template,
        annotations=_SCRAPE,
        ports=({"name": "metrics", "containerPort": METRICS_PORT, "protocol": "TCP"},),
        shared_memory=f"{ranks}Gi" if workers.shared_memory is None else workers.shared_memory,
        spec=spec,
    )


def _apart(labels: dict[str, str]) -> Manifest:
    """One pod a node where there is room; a preference, so that one machine can hold all."""
    term = {
        "weight": 100,
        "podAffinityTerm": {
            "labelSelector": {"matchLabels": labels},
            "topologyKey": "kubernetes.io/hostname",
        },
    }
    return {"podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [term]}}
