"""Walks a JSON schema, as the CRD and the chart's values have one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


def nodes(node: dict[str, Any], path: str = "", each: str = "[]") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every schema below `node`, with its path, in which `each` stands for any item of a list or a map."""
    yield path, node
    for name, below in node.get("properties", {}).items():
        yield from nodes(below, f"{path}.{name}".lstrip("."), each)
    for name in ("items", "additionalProperties"):
        if isinstance(node.get(name), dict):
            yield from nodes(node[name], f"{path}{each}", each)
