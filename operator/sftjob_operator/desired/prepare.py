"""The prepare Job: one pod that fetches model and data, and the only one that sees secrets."""

from __future__ import annotations

from sft_trainer.config import COLLECT_FILE, PREPARE_FILE, CollectConfig
from sftjob_operator.api import names
from sftjob_operator.api.objects import Manifest
from sftjob_operator.api.v1alpha1 import SFTJob
from sftjob_operator.desired.children import config_map, digest, job_labels, metadata
from sftjob_operator.desired.config import prepare_config, secret_prefixes
from sftjob_operator.desired.failurepolicy import pod_failure_policy
from sftjob_operator.desired.podspec import Part, pod_template, resources
from sftjob_operator.settings import Settings


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
    work = prepare_config(job).model_dump(mode="json", exclude={"job"}, exclude_defaults=True)
    return digest([work, pod], 16)


def prepare_name(job: SFTJob, input_digest: str, number: int) -> str:
    """Name of the `number`-th try (from 1) at an input; at most 62 characters, the try is in the digest."""
    return names.prepare(job.name, digest([input_digest, number]))


def prepare_children(
    job: SFTJob, settings: Settings, number: int, collect: CollectConfig | None = None
) -> list[Manifest]:
    """ConfigMap and Job of the `number`-th try, in the order in which they are created.

    `collect` is no part of its input: it changes with other jobs, and counts as it was when these were made.
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
                "template": pod_template(job, settings, _part(job, name)),
            },
        },
    ]


def _part(job: SFTJob, name: str) -> Part:
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
        template=spec.pod_template,
        env_from=secrets,
    )
