"""Checks an object against a structural schema as the API server does, in its words, and prunes unknown fields.

Knows JSON and the dialect of OpenAPI that a CRD speaks, nothing of SFTJob.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

Schema = dict[str, Any]


@dataclass(frozen=True)
class Problem:
    """One complaint. Rules are not evaluated on what has a blocking one."""

    path: str
    words: str
    blocks_rules: bool = False

    def __str__(self) -> str:
        """As the API server lists it."""
        return f"{self.path}: {self.words}"


def prune(value: Any, schema: Schema) -> Any:
    """`value` without the fields that the schema does not know, as the API server stores it."""
    if isinstance(value, list):
        return [prune(item, schema.get("items", {})) for item in value]
    if not isinstance(value, dict) or schema.get("x-kubernetes-preserve-unknown-fields"):
        return value
    properties, extra = schema.get("properties"), schema.get("additionalProperties")
    if properties is None:
        return {key: prune(item, extra or {}) for key, item in value.items()}
    return {key: prune(item, properties[key]) for key, item in value.items() if key in properties}


def unknown_fields(value: Any, schema: Schema, path: str = "") -> Iterator[tuple[str, str, list[str]]]:
    """Every field that `prune` would drop: its parent's path, its name, and the names that are valid there."""
    if isinstance(value, list):
        for index, item in enumerate(value):
            yield from unknown_fields(item, schema.get("items", {}), f"{path}[{index}]")
    if not isinstance(value, dict) or schema.get("x-kubernetes-preserve-unknown-fields"):
        return
    properties, extra = schema.get("properties"), schema.get("additionalProperties")
    for key, item in value.items():
        below = extra if properties is None else properties.get(key)
        if below is None and properties is not None:
            yield path, str(key), sorted(properties)
        else:
            yield from unknown_fields(item, below or {}, f"{path}.{key}" if path else str(key))


def validate(value: Any, schema: Schema, path: str = "") -> Iterator[Problem]:
    """All complaints about types, presence, enums and bounds."""
    if schema.get("x-kubernetes-int-or-string"):
        if isinstance(value, bool) or not isinstance(value, int | str):
            yield _type(path, "integer,string", value)
        return
    wanted = schema.get("type")
    if wanted is not None and not _is(value, wanted):
        yield _type(path, wanted, value)
        return
    if "enum" in schema and value not in schema["enum"]:
        supported = ", ".join(json.dumps(item) for item in schema["enum"])
        yield Problem(path, f"Unsupported value: {json.dumps(value)}: supported values: {supported}")
    if isinstance(value, dict):
        yield from _object(value, schema, path)
    elif isinstance(value, list):
        yield from _list(value, schema, path)
    elif isinstance(value, str):
        yield from _string(value, schema, path)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield from _number(value, schema, path)


def _object(value: dict[str, Any], schema: Schema, path: str) -> Iterator[Problem]:
    for name in schema.get("required", []):
        if name not in value:
            yield Problem(_join(path, name), "Required value", blocks_rules=True)
    if len(value) > schema.get("maxProperties", len(value)):
        yield Problem(
            path, f"Too many: {len(value)}: must have at most {schema['maxProperties']} items", True
        )
    properties, extra = schema.get("properties", {}), schema.get("additionalProperties")
    for key, item in value.items():
        if key in properties:
            yield from validate(item, properties[key], _join(path, key))
        elif isinstance(extra, dict):
            yield from validate(item, extra, _join(path, key))


def _list(value: list[Any], schema: Schema, path: str) -> Iterator[Problem]:
    if len(value) > schema.get("maxItems", len(value)):
        yield Problem(path, f"Too many: {len(value)}: must have at most {schema['maxItems']} items", True)
    if len(value) < schema.get("minItems", 0):
        words = f"Invalid value: {len(value)}: {path} in body should have at least {schema['minItems']} items"
        yield Problem(path, words)
    for index, item in enumerate(value):
        yield from validate(item, schema.get("items", {}), f"{path}[{index}]")


def _string(value: str, schema: Schema, path: str) -> Iterator[Problem]:
    if len(value) > schema.get("maxLength", len(value)):
        yield Problem(path, f"Too long: may not be more than {schema['maxLength']} bytes", blocks_rules=True)
    if len(value) < schema.get("minLength", 0):
        words = f"{path} in body should be at least {schema['minLength']} chars long"
        yield Problem(path, f"Invalid value: {json.dumps(value)}: {words}")
    pattern = schema.get("pattern")
    if pattern is not None and not re.search(pattern, value):
        yield Problem(path, f"Invalid value: {json.dumps(value)}: {path} in body should match '{pattern}'")


def _number(value: float, schema: Schema, path: str) -> Iterator[Problem]:
    low, high = schema.get("minimum"), schema.get("maximum")
    if low is not None and (value < low or (value == low and schema.get("exclusiveMinimum"))):
        more = "greater than" if schema.get("exclusiveMinimum") else "greater than or equal to"
        yield Problem(path, f"Invalid value: {json.dumps(value)}: {path} in body should be {more} {low}")
    if high is not None and (value > high or (value == high and schema.get("exclusiveMaximum"))):
        less = "less than" if schema.get("exclusiveMaximum") else "less than or equal to"
        yield Problem(path, f"Invalid value: {json.dumps(value)}: {path} in body should be {less} {high}")


def _is(value: Any, wanted: str) -> bool:
    if wanted == "integer":
        return not isinstance(value, bool) and (
            isinstance(value, int) or (isinstance(value, float) and value.is_integer())
        )
    if wanted == "number":
        return isinstance(value, int | float) and not isinstance(value, bool)
    return isinstance(value, {"object": dict, "array": list, "string": str, "boolean": bool}[wanted])


def _type(path: str, wanted: str, value: Any) -> Problem:
    name = "null" if value is None else next((kind for kind in _NAMES if _is(value, kind)), "object")
    words = f'Invalid value: "{name}": {path} in body must be of type {wanted}: "{name}"'
    return Problem(path, words, blocks_rules=True)


_NAMES = ("string", "boolean", "integer", "number", "array", "object")


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
