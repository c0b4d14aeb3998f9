"""What an API server checks and fills in before it stores an object: kinds, defaults, rules, what is immutable.

SFTJobs go through the CRD itself, so that a bad YAML is refused here with the words a cluster would use. Of the
built-in kinds only what local pods can honour is let through: accepted and ignored would be a defect.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from typing import Any

from sftjob_operator.api import v1alpha1
from sftjob_operator.api.crd import crd
from sftjob_operator.cluster.base import Manifest, NotFound, Ref, Rejected, ref_of
from sftjob_operator.cluster.local import names, rules, schema

KINDS = {
    (v1alpha1.API_VERSION, v1alpha1.KIND),
    ("batch/v1", "Job"),
    ("v1", "ConfigMap"),
    ("v1", "Event"),
    ("v1", "PersistentVolumeClaim"),
    ("v1", "Pod"),
    ("v1", "Secret"),
    ("v1", "Service"),
}
CLUSTER_KINDS = {("v1", "Node")}
WITH_STATUS = {v1alpha1.KIND, "Job", "Pod"}
"""Kinds whose status is a subresource: an ordinary write leaves it alone."""
VOLUME_KINDS = ("persistentVolumeClaim", "configMap", "secret", "emptyDir", "hostPath")


def check_kind(ref: Ref) -> None:
    """NotFound, as a server says it that does not serve this kind."""
    if (ref.api, ref.kind) not in KINDS | CLUSTER_KINDS:
        raise NotFound(404, "NotFound", "the server could not find the requested resource")


def admit(manifest: Manifest, old: Manifest | None) -> Manifest:
    """The object as it is to be stored in place of `old`; Rejected (422) with every reason why not."""
    misnamed = list(_misnamed(manifest))
    if misnamed:
        raise _invalid(manifest, misnamed)
    kind = manifest["kind"]
    if kind == v1alpha1.KIND:
        return _sftjob(manifest, old)
    if kind == "Job":
        return _job(manifest, old)
    if kind == "ConfigMap" and old is not None and old.get("immutable"):
        if any(manifest.get(key) != old.get(key) for key in ("data", "binaryData", "immutable")):
            raise _invalid(manifest, ["data: Forbidden: field is immutable when `immutable` is set"])
    return manifest


@cache
def sftjob_schema() -> schema.Schema:
    """The schema inside the CRD."""
    version: dict[str, Any] = crd()["spec"]["versions"][0]
    result: schema.Schema = version["schema"]["openAPIV3Schema"]
    return result


def _sftjob(manifest: Manifest, old: Manifest | None) -> Manifest:
    whole = sftjob_schema()
    known = schema.prune({key: item for key, item in manifest.items() if key != "metadata"}, whole)
    item = {**known, "metadata": manifest["metadata"]}
    problems = list(schema.validate({**known, "metadata": {}}, whole))
    if any(problem.blocks_rules for problem in problems):
        words = "some validation rules were not checked because the object was invalid; "
        fix = "correct the existing errors to complete validation"
        problems.append(schema.Problem("<nil>", f'Invalid value: "null": {words}{fix}'))
    else:
        problems += rules.violations(_visible(item), old and _visible(old), whole)
    if problems:
        raise _invalid(item, [str(problem) for problem in problems])
    return item


def _misnamed(manifest: Manifest) -> Iterator[str]:
    ref = ref_of(manifest)
    if ref.kind != v1alpha1.KIND and not names.is_subdomain(ref.name):  # an SFTJob's own rules say more
        yield f"metadata.name: Invalid value: {json.dumps(ref.name)}: {names.SUBDOMAIN_WORDS}"
    if not names.is_label(ref.namespace):
        yield f"metadata.namespace: Invalid value: {json.dumps(ref.namespace)}: {names.LABEL_WORDS}"


def _visible(item: Manifest) -> Manifest:
    """Of metadata a rule sees the name alone."""
    metadata = item["metadata"]
    return {**item, "metadata": {key: metadata[key] for key in ("name", "generateName") if key in metadata}}


def _job(manifest: Manifest, old: Manifest | None) -> Manifest:
    spec = dict(manifest["spec"])
    spec.setdefault("parallelism", 1)
    spec.setdefault("completions", 1)
    spec.setdefault("completionMode", "NonIndexed")
    spec.setdefault("backoffLimit", 6)
    spec.setdefault("suspend", False)
    spec.setdefault("podReplacementPolicy", "Failed" if "podFailurePolicy" in spec else "TerminatingOrFailed")
    item = {**manifest, "spec": spec}
    problems = _unsupported(spec)
    if old is not None:
        for key in ("completions", "completionMode", "template", "podFailurePolicy", "selector"):
            if spec.get(key) != old["spec"].get(key):
                problems.append(f"spec.{key}: Invalid value: field is immutable")
    if problems:
        raise _invalid(item, problems)
    return item


def _unsupported(spec: Manifest) -> list[str]:
    pod = spec["template"]["spec"]
    problems = []
    if pod.get("restartPolicy") != "Never":
        problems.append("spec.template.spec.restartPolicy: local pods know only Never")
    if len(pod.get("containers", [])) != 1 or pod.get("initContainers"):
        problems.append("spec.template.spec.containers: a local pod has exactly one container")
    mounted = {
        mount["name"]
        for container in pod.get("containers", [])
        for mount in container.get("volumeMounts", [])
    }
    for index, volume in enumerate(pod.get("volumes", [])):
        if volume["name"] in mounted and not any(kind in volume for kind in VOLUME_KINDS):
            kinds = ", ".join(VOLUME_KINDS)
            problems.append(f"spec.template.spec.volumes[{index}]: local volumes are one of {kinds}")
    missing = mounted - {volume["name"] for volume in pod.get("volumes", [])}
    problems += [
        f'spec.template.spec.containers[0].volumeMounts: Not found: "{name}"' for name in sorted(missing)
    ]
    return problems


def _invalid(manifest: Manifest, problems: list[str]) -> Rejected:
    ref = ref_of(manifest)
    group = ref.api.partition("/")[0] if "/" in ref.api else ""
    kind = f"{ref.kind}.{group}" if group else ref.kind
    words = problems[0] if len(problems) == 1 else f"[{', '.join(problems)}]"
    return Rejected(422, "Invalid", f'{kind} "{ref.name}" is invalid: {words}')
