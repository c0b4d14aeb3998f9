"""The prepare Job: one pod that fetches model and data, and the only one that sees secrets."""

from __future__ import annotations

from typing import Any

from sft_trainer.config import COLLECT_FILE, PREPARE_FILE, CollectConfig
from sftjob_operator.api import names
from sftjob_operator.api.objects import Manifest
from sftjob_operator.api.v1alpha1 import SFTJob
from sftjob_operator.api.v1alpha1.pods import PodTemplate
from sftjob_operator.desired.children import config_map, digest, job_labels, metadata
from sftjob_operator.desired.config import prepare_config, secret_prefixes
from sftjob_operator.desired.failurepolicy import pod_failure_policy
from sftjob_operator.desired.podspec import Part, pod_template, resources
from sftjob_operator.settings import Settings

_PLACE = ("node_selector", "tolerations", "affinity")


def prepare_input(job: SFTJob) -> str:
    """Digest of everything in the spec that decides what preparation does: another one is another preparation.

    Nothing of the operator's own is in it, and no default: an upgrade alone must not end a preparation, nor do again
    what has been done.
    """
    spec = job.spec
    pod = {
        "image": spec.workers.image,
        "imagePullPolicy": spec.workers.image_pull_policy,
        "imagePullSecrets": [secret.name for secret in spec.workers.image_pull_secrets],
        "secret": None if spec.model.secret_ref is None else spec.model.secret_ref.name,
        "dataSecrets": sorted(secret_prefixes(job)),
        "prepare": spec.prepare.model_dump(mode="json", exclude_defaults=True),
        "workspace": spec.workspace.model_dump(mode="json", exclude_defaults=True),
    }
    if place := _place_of_workers(job):
        pod["place"] = place
    work = prepare_config(job).model_dump(mode="json", exclude={"job"}, exclude_defaults=True)
    return digest([work, pod], 16)


def prepare_name(job: SFTJob, input_digest: str, number: int) -> str:
    """Name of the `number`-th try (from 1) at an input; at most 62 characters, the try is in the digest."""
    return names.prepare(job.name, digest([input_digest, number]))


def prepare_children(
    job: SFTJob, settings: Settings, number: int, collect: CollectConfig | None = None, *, shared: bool = True
) -> list[Manifest]:
    """ConfigMap and Job of the `number`-th try, in the order in which they are created.

    `collect` is no part of its input: it changes with other jobs, and counts as it was when these were made. `shared`:
    the volume can be mounted on any node, wherever this pod runs.
    """
    input_digest = prepare_input(job)
    name = prepare_name(job, input_digest, number)
    labels = names.labels(job.name, names.ROLE_PREPARE)
    annotations = {names.ANNOTATION_INPUT: input_digest, names.ANNOTATION_TRY: str(number)}
    files = {PREPARE_FILE: prepare_config(job).to_json(indent=2)}
    if collect is not None:
        files[COLLECT_FILE] = collect.to_json(indent=2)
    return [
        config_map(job, name, labels, files),
        {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": metadata(job, name, job_labels(job, names.ROLE_PREPARE), annotations),
            "spec": {
                "completions": 1,
                "parallelism": 1,
                "backoffLimit": 0,
                "podReplacementPolicy": "Failed",
                "podFailurePolicy": pod_failure_policy(),
                "template": pod_template(job, settings, _part(job, name, shared)),
            },
        },
    ]


def _place_of_workers(job: SFTJob) -> dict[str, Any]:
    """Where the training pod is to run, if preparation says nothing of its own place."""
    ours, theirs = job.spec.prepare.pod_template.spec, job.spec.workers.pod_template.spec
    if job.spec.workers.nodes > 1 or any(getattr(ours, name) for name in _PLACE):
        return {}
    return {name: getattr(theirs, name) for name in _PLACE if getattr(theirs, name)}


def _template(job: SFTJob, shared: bool) -> PodTemplate:
    """The first pod on a volume of one node or zone decides which one: it had better be one for the training pod."""
    template = job.spec.prepare.pod_template
    if shared:
        return template
    return template.model_copy(update={"spec": template.spec.model_copy(update=_place_of_workers(job))})


def _part(job: SFTJob, name: str, shared: bool) -> Part:
    spec, secret = job.spec.prepare, job.spec.model.secret_ref
    secrets: list[Manifest] = [] if secret is None else [{"secretRef": {"name": secret.name}}]
    secrets += [
        {"prefix": prefix, "secretRef": {"name": name}} for name, prefix in secret_prefixes(job).items()
    ]
    return Part(
        command="prepare",
        config_map=name,
        labels=names.labels(job.name, names.ROLE_PREPARE),
        resources=resources(spec.resources),
        env=spec.env,
        template=_template(job, shared),
        env_from=secrets,
    )
