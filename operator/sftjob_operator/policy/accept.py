"""Whether a spec can be worked on: what the schema's CEL rules cannot see, said with the fix."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic import ValidationError

from sftjob_operator.api import names
from sftjob_operator.api.objects import Manifest
from sftjob_operator.api.v1alpha1 import SFTJob, Spec
from sftjob_operator.api.v1alpha1.pods import EnvVar, PodTemplate
from sftjob_operator.desired.podsecurity import annotation_violation, violation
from sftjob_operator.desired.podspec import OUR_VOLUMES, secured
from sftjob_operator.planning.batch import SpecError
from sftjob_operator.planning.combinations import refuse_what_cannot_work_together
from sftjob_operator.planning.hardware import quantity_bytes
from sftjob_operator.planning.intent import intent
from sftjob_operator.policy.quota import too_large
from sftjob_operator.settings import Settings

_UNKNOWN = (
    "this operator does not know the field and would ignore it: remove it, or install the operator of the same "
    "release as the CustomResourceDefinition"
)
_INLINE_BYTES = 512 * 1024  # a ConfigMap holds 1 MiB, and JSON escapes


def read_sftjob(manifest: Manifest) -> SFTJob:
    """Parse an object as the API server stored it; ValueError says which field cannot be read.

    The definition in the cluster may be newer than this operator: then a job that has started goes on without the
    fields that only a newer one knows, and one that has not does not start without them.
    """
    try:
        job = SFTJob.model_validate(manifest)
    except ValidationError as error:
        raise ValueError(_words(error)) from None
    if job.status.start_time is None:
        try:
            Spec.model_validate(manifest["spec"], extra="forbid")
        except ValidationError as error:
            raise ValueError(_words(error, "spec")) from None
    return job


def _words(error: ValidationError, *root: str) -> str:
    found = [
        f"{_path((*root, *item['loc']))}: {_UNKNOWN if item['type'] == 'extra_forbidden' else item['msg']}"
        for item in error.errors()[:3]
    ]
    return "; ".join(found) + (f" (and {error.error_count() - 3} more)" if error.error_count() > 3 else "")


def objection(job: SFTJob, settings: Settings, *, has_share: bool = False) -> SpecError | None:
    """Why this spec cannot run, or may not on this platform; None when it can. A share of a quota that it has already
    is not taken away by a smaller one.
    """
    try:
        wanted = intent(job.spec)
        refuse_what_cannot_work_together(job.spec, wanted)
        _security(job.spec, settings)
        for check in (_environment, _templates, _quantities, _inline):
            check(job.spec)
    except SpecError as error:
        return error
    return None if has_share else too_large(job, settings)


def _environment(spec: Spec) -> None:
    for path, variables in (("spec.workers.env", spec.workers.env), ("spec.prepare.env", spec.prepare.env)):
        for variable in variables:
            _check_variable(path, variable)


def _check_variable(path: str, variable: EnvVar) -> None:
    if variable.name.startswith("SFTJOB_") or variable.name == "JOB_COMPLETION_INDEX":
        raise SpecError("ReservedName", f"{path}: {variable.name} is set by the operator: remove it")


def _templates(spec: Spec) -> None:
    for path, template in (
        ("spec.workers.podTemplate", spec.workers.pod_template),
        ("spec.prepare.podTemplate", spec.prepare.pod_template),
    ):
        for taken in _taken(template):
            raise SpecError("ReservedName", f"{path}.{taken}: rename it")


def _taken(template: PodTemplate) -> Iterator[str]:
    ours = (names.LABEL_JOB, names.LABEL_ATTEMPT, names.LABEL_ROLE, names.LABEL_MANAGED_BY)
    for label in template.metadata.labels:
        if label in ours:
            yield f"metadata.labels: {label} is set by the operator"
    for volume in template.spec.volumes:
        if volume.get("name") in OUR_VOLUMES:
            yield f"spec.volumes: {volume['name']} is a volume of the operator's"


def _security(spec: Spec, settings: Settings) -> None:
    level = settings.pod_security
    for path, template in (
        ("spec.workers.podTemplate", spec.workers.pod_template),
        ("spec.prepare.podTemplate", spec.prepare.pod_template),
    ):
        found = annotation_violation(template.metadata.annotations, level)
        if found is None and (inside := violation(secured(template, settings), level)) is not None:
            found = f"spec.{inside}"
        if found is not None:
            raise SpecError(
                "PodSecurity",
                f"{path}.{found}: the Pod Security Standard {level}, which this operator holds jobs to, does not "
                "allow that: leave it out, or ask the platform's owner for another operator.podSecurity",
            )


def _quantities(spec: Spec) -> None:
    workers = spec.workers
    for path, resources in (
        ("spec.workers.resources", workers.resources),
        ("spec.prepare.resources", spec.prepare.resources),
    ):
        for kind in ("requests", "limits"):
            for name, value in getattr(resources, kind).items():
                _quantity(f"{path}.{kind}.{name}", value)
    if workers.shared_memory is not None:
        _quantity("spec.workers.sharedMemory", workers.shared_memory)
    if spec.workspace.claim_template is not None:
        path = "spec.workspace.claimTemplate.spec.resources.requests.storage"
        _quantity(path, spec.workspace.claim_template.spec.resources.requests.storage)
    if workers.gpus_per_node:
        for kind in ("requests", "limits"):
            stated = getattr(workers.resources, kind).get(workers.gpu_resource_name)
            if stated is not None and str(stated) != str(workers.gpus_per_node):
                raise SpecError(
                    "ResourceConflict",
                    f"spec.workers.resources.{kind}.{workers.gpu_resource_name} is {stated}, but "
                    f"spec.workers.gpusPerNode is {workers.gpus_per_node}: remove the former",
                )


def _quantity(path: str, value: int | str) -> None:
    try:
        quantity_bytes(value)
    except ValueError as error:
        raise SpecError("InvalidQuantity", f"{path}: {error}") from None


def _inline(spec: Spec) -> None:
    size = sum(len((source.inline or "").encode()) for source in spec.data_sources.values())
    if size > _INLINE_BYTES:
        raise SpecError(
            "InlineDataTooLarge",
            f"spec.data: the inline sources have {size:,} bytes together, more than {_INLINE_BYTES:,}: put "
            "them into a file in the workspace and use path",
        )


def _path(location: tuple[Any, ...]) -> str:
    return ".".join(str(part) for part in location) or "the object"
