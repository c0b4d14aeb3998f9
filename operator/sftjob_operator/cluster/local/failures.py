"""podFailurePolicy in Kubernetes' own words (batch/v1, 1.34): operators read them out of a Job's Failed condition."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from sftjob_operator.cluster.base import Manifest


class Match(NamedTuple):
    """The first rule that takes a failed pod."""

    action: str
    message: str


def match(policy: Manifest, pod: Manifest) -> Match | None:
    """The rule for this pod; None when no rule takes it, which counts it against backoffLimit."""
    for index, rule in enumerate(policy.get("rules", [])):
        words = _exit_code(rule["onExitCodes"], pod) if "onExitCodes" in rule else _condition(rule, pod)
        if words is not None:
            return Match(rule["action"], f"{words} matching {rule['action']} rule at index {index}")
    return None


def fail_message(policy: Manifest | None, pods: Iterable[Manifest]) -> str | None:
    """Why the whole Job fails: the first failed pod, in list order, that a FailJob rule takes."""
    for pod in pods:
        found = match(policy, pod) if policy else None
        if found is not None and found.action == "FailJob":
            return found.message
    return None


def is_counted(policy: Manifest | None, pod: Manifest) -> bool:
    """Whether a failed pod counts against backoffLimit."""
    found = match(policy, pod) if policy else None
    return found is None or found.action != "Ignore"


def _exit_code(requirement: Manifest, pod: Manifest) -> str | None:
    for container in pod.get("status", {}).get("containerStatuses", []):
        code = container["state"].get("terminated", {}).get("exitCode", 0)
        if code == 0 or requirement.get("containerName") not in (None, container["name"]):
            continue
        if (code in requirement["values"]) == (requirement["operator"] == "In"):
            return f"Container {container['name']} for pod {_name(pod)} failed with exit code {code}"
    return None


def _condition(rule: Manifest, pod: Manifest) -> str | None:
    for present in pod.get("status", {}).get("conditions", []):
        for pattern in rule.get("onPodConditions", []):
            if (present["type"], present["status"]) == (pattern["type"], pattern.get("status", "True")):
                return f"Pod {_name(pod)} has condition {present['type']}"
    return None


def _name(pod: Manifest) -> str:
    return f"{pod['metadata']['namespace']}/{pod['metadata']['name']}"
