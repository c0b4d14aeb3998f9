"""What an API server does to objects, as pure functions: merge patches, server-side apply, labels, owners, time."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sftjob_operator.cluster.base import Manifest, Ref, ref_of


def timestamp(moment: datetime | None = None) -> str:
    """RFC 3339 in UTC, to the second, as in metadata."""
    return (moment or datetime.now(UTC)).astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def parse_timestamp(text: str) -> datetime:
    """The moment of a metadata timestamp."""
    return datetime.fromisoformat(text)


def merge_patch(target: Any, patch: Any) -> Any:
    """RFC 7396: objects merge, null deletes, everything else replaces."""
    if not isinstance(patch, dict):
        return patch
    result = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = merge_patch(result.get(key), value)
    return result


def fields_of(value: Manifest) -> Manifest:
    """The fields that an apply owns, in the form of metadata.managedFields (lists are one field)."""
    return {f"f:{key}": fields_of(item) if isinstance(item, dict) else {} for key, item in value.items()}


def apply(live: Manifest, owned: Manifest, wanted: Manifest) -> Manifest:
    """`live` with everything in `wanted`, and without what was `owned` and is wanted no more."""
    result = dict(live)
    for field, below in owned.items():
        key = field.removeprefix("f:")
        if key not in result or key in wanted:
            continue
        rest = apply(result[key], below, {}) if below and isinstance(result[key], dict) else {}
        if rest:
            result[key] = rest
        else:
            del result[key]
    for key, value in wanted.items():
        below = owned.get(f"f:{key}", {})
        held = result.get(key)
        result[key] = (
            apply(held if isinstance(held, dict) else {}, below, value) if isinstance(value, dict) else value
        )
    return result


def has_labels(manifest: Manifest, labels: dict[str, str]) -> bool:
    """Whether an equality selector takes this object."""
    present = manifest["metadata"].get("labels", {})
    return all(present.get(key) == value for key, value in labels.items())


def owner_refs(manifest: Manifest) -> list[Ref]:
    """Whom it belongs to: owners are in the same namespace."""
    namespace = ref_of(manifest).namespace
    owners = manifest["metadata"].get("ownerReferences", [])
    return [Ref(owner["apiVersion"], owner["kind"], namespace, owner["name"]) for owner in owners]


def owner_uids(manifest: Manifest) -> list[str]:
    """The uids of its owners."""
    return [owner["uid"] for owner in manifest["metadata"].get("ownerReferences", [])]


def is_terminal(pod: Manifest) -> bool:
    """Whether a pod's containers have ended for good."""
    return pod.get("status", {}).get("phase") in ("Succeeded", "Failed")


def is_terminating(item: Manifest) -> bool:
    """Whether it was asked to go."""
    return "deletionTimestamp" in item["metadata"]
