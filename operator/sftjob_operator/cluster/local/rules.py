"""The CEL rules of a CRD's schema, evaluated with cel-python: the same bad object is refused with the same message.

A rule of a list's item or of a field sees that item as `self`; transition rules (`oldSelf`) are only asked on updates.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from typing import Any

import celpy
from celpy import celtypes

from sftjob_operator.cluster.local.schema import Problem, Schema


def violations(value: Any, old: Any, schema: Schema, path: str = "") -> Iterator[Problem]:
    """Every rule that does not hold for `value`; `old` is what stands there now, None when nothing does."""
    for rule in schema.get("x-kubernetes-validations", []):
        text = rule["rule"]
        if "oldSelf" in text and old is None:
            continue
        kind = json.dumps(schema.get("type", "object"))
        try:
            holds, words = _holds(text, value, old), rule["message"]
        except (celpy.CELEvalError, ValueError) as error:  # ValueError: a number that CEL cannot hold
            holds, words = False, f"rule evaluation error: {error}"
        if not holds:
            yield Problem(path or "<nil>", f"Invalid value: {kind}: {words}")
    if isinstance(value, dict):
        properties, extra = schema.get("properties", {}), schema.get("additionalProperties")
        for key, item in value.items():
            below = properties.get(key, extra)
            if isinstance(below, dict):
                previous = old.get(key) if isinstance(old, dict) else None
                yield from violations(item, previous, below, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list):
        # Items of an atomic list have no predecessor.
        for index, item in enumerate(value):
            yield from violations(item, None, schema.get("items", {}), f"{path}[{index}]")


def _holds(rule: str, value: Any, old: Any) -> bool:
    variables = {"self": celpy.json_to_cel(value)}
    if old is not None:
        variables["oldSelf"] = celpy.json_to_cel(old)
    return bool(_program(rule).evaluate(variables))


def _split(text: celtypes.StringType, separator: celtypes.StringType) -> celtypes.ListType:
    """Of Kubernetes' string library, which cel-python does not have."""
    return celtypes.ListType([celtypes.StringType(part) for part in str(text).split(str(separator))])


@cache
def _environment() -> celpy.Environment:
    return celpy.Environment()


@cache
def _program(rule: str) -> celpy.Runner:
    environment = _environment()
    return environment.program(environment.compile(rule), functions={"split": _split})
