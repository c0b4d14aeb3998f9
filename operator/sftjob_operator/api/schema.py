"""From a pydantic model to a structural schema: the dialect of OpenAPI that a CRD accepts.

Knows nothing of SFTJob. Kubernetes wants no $ref, no unions with null, no defaults we did not choose, and the
boolean form of exclusive bounds; everything x-kubernetes-* and all descriptions are kept.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

Schema = dict[str, Any]
_DROPPED = ("title", "default", "$defs", "const")


def structural_schema(model: type[BaseModel]) -> Schema:
    """The structural schema of a model, with JSON (alias) names."""
    source = model.model_json_schema(by_alias=True)
    return _convert(source, source.get("$defs", {}))


def _convert(node: Schema, definitions: dict[str, Schema]) -> Schema:
    node = _without_null(_resolved(node, definitions), definitions)
    result = {key: value for key, value in node.items() if key not in _DROPPED}
    if "const" in node:
        result["enum"] = [node["const"]]
    for bound, limit in (("exclusiveMinimum", "minimum"), ("exclusiveMaximum", "maximum")):
        if bound in node:
            result[limit], result[bound] = node[bound], True
    if "properties" in node:
        result["properties"] = {
            name: _convert(item, definitions) for name, item in node["properties"].items()
        }
        result.pop("additionalProperties", None)
    elif isinstance(node.get("additionalProperties"), dict):
        result["additionalProperties"] = _convert(node["additionalProperties"], definitions)
    elif node.get("x-kubernetes-preserve-unknown-fields"):
        result.pop("additionalProperties", None)
    if "items" in node:
        result["items"] = _convert(node["items"], definitions)
    if isinstance(result.get("description"), str):
        result["description"] = " ".join(result["description"].split())
    return result


def _resolved(node: Schema, definitions: dict[str, Schema]) -> Schema:
    """`node` with its $ref replaced; what stands beside the reference (a field's description) wins."""
    while "$ref" in node:
        beside = {key: value for key, value in node.items() if key != "$ref"}
        node = {**definitions[node["$ref"].rsplit("/", 1)[1]], **beside}
    return node


def _without_null(node: Schema, definitions: dict[str, Schema]) -> Schema:
    """`anyOf: [X, null]` is an optional X: absence says it in Kubernetes."""
    options = node.get("anyOf")
    if options is None or node.get("x-kubernetes-int-or-string"):
        return node
    kept = [option for option in options if option.get("type") != "null"]
    if len(kept) != 1:
        raise TypeError(f"a union is not structural: {node}")
    beside = {key: value for key, value in node.items() if key != "anyOf"}
    return _without_null({**_resolved(kept[0], definitions), **beside}, definitions)
