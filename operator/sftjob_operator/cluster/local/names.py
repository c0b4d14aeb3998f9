"""Names as an API server takes them: they become paths here, so nothing else may get through."""

from __future__ import annotations

import re

from sftjob_operator.cluster.base import Ref

_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
LABEL_WORDS = "use at most 63 lower-case letters, digits and -, beginning and ending with a letter or digit"
SUBDOMAIN_WORDS = (
    "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', "
    "and must start and end with an alphanumeric character"
)


def is_label(name: str) -> bool:
    """Whether it may name a namespace."""
    return _LABEL.fullmatch(name) is not None


def is_subdomain(name: str) -> bool:
    """Whether it may name an object."""
    return len(name) <= 253 and _SUBDOMAIN.fullmatch(name) is not None


def is_safe(ref: Ref) -> bool:
    """Whether this address, as a path, stays where it belongs."""
    return is_subdomain(ref.name) and is_label(ref.namespace)
