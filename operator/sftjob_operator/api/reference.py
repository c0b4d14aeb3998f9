"""docs/api.md, made from the models: one table per object.

What a user may write, its limits and its default are said in one place, the models; this page only arranges
them. Defaults come from the models and not from the schema, which has none (see v1alpha1).
"""

from __future__ import annotations

import inspect
import json
import re
import typing
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from sftjob_operator.api import schema, status, v1alpha1

CONDITION_MEANINGS = {
    "Accepted": "The spec makes sense as a whole. False says which field to change.",
    "Prepared": "Model and data are checked and tokenised. Message: rows, tokens, what was cut.",
    "Planned": "The parallel strategy is chosen and fits. False says what would fit; no GPU was taken.",
    "Running": "Every pod of the gang works. False answers why not: what it waits for, in one sentence.",
    "Suspended": "spec.suspend is true and all pods are gone; the newest checkpoint is on the volume.",
    "Complete": "Every rank ended well, and the export was reloaded and checked. Never changes again.",
    "Failed": "No further attempt will be made. After the first attempt has started it never changes again.",
}
MAX_NAME_LENGTH = 253  # every Kubernetes name has this limit: not worth a word
INTRODUCTION = """\
# SFTJob {version}

Group `{group}`, kind `{kind}`, short name `sft`, category `sftjob`; namespaced; subresources `status` and
`scale` (of `spec.workers.nodes`). `kubectl explain sftjob.spec --recursive` shows the same in a terminal.

## Minimal example

```yaml
{example}
```

## How to read this page

- A field without a default may be left out; its description says what happens then. Required ones may not.
- Limits and *rules* are checked by the API server when you apply, and by `sftjob run` on a laptop. What a
  schema cannot see is the condition `Accepted=False` with the fix in its message.
- Times are in seconds, sizes are Kubernetes quantities (`64Gi`), paths are relative to the workspace volume.
"""


@dataclass
class Section:
    """One object: its model, its schema, and every place where it occurs."""

    model: type[BaseModel]
    schema: schema.Schema
    paths: list[str] = field(default_factory=list)


def reference(example: str) -> str:
    """The whole page; `example` is a manifest."""
    root = schema.structural_schema(v1alpha1.SFTJob)
    spec = _sections(v1alpha1.Spec, root["properties"]["spec"], "spec")
    stat = _sections(status.Status, root["properties"]["status"], "status")
    parts = [
        INTRODUCTION.format(
            version=v1alpha1.VERSION,
            group=v1alpha1.GROUP,
            kind=v1alpha1.KIND,
            example=_without_comments(example),
        ),
        "## metadata\n",
        _rules(root),
        "## spec\n",
        *(_section(section) for section in spec.values()),
        "## status\n\nWritten by the operator only, whole, once per pass.\n",
        *(_section(section) for section in stat.values()),
        _conditions(),
    ]
    return "\n".join(part for part in parts if part).rstrip() + "\n"


def _sections(model: type[BaseModel], node: schema.Schema, path: str) -> dict[type[BaseModel], Section]:
    """The model and all below it, in the order of reading; a model that occurs twice is one section."""
    found: dict[type[BaseModel], Section] = {}
    for inner, inner_node, inner_path in _walk(model, node, path):
        found.setdefault(inner, Section(inner, inner_node)).paths.append(inner_path)
    return found


def _walk(
    model: type[BaseModel], node: schema.Schema, path: str
) -> Iterator[tuple[type[BaseModel], schema.Schema, str]]:
    yield model, node, path
    for name, info in _fields(model):
        inner = _model_in(info.annotation)
        if inner is None:
            continue
        below = node["properties"][name]
        if below.get("type") == "array":
            yield from _walk(inner, below["items"], f"{path}.{name}[]")
        else:
            yield from _walk(inner, below, f"{path}.{name}")


def _fields(model: type[BaseModel]) -> list[tuple[str, FieldInfo]]:
    return [(info.alias or name, info) for name, info in model.model_fields.items()]


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The model inside `X | None`, `list[X]`, `Annotated[X, ...]`."""
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        return annotation
    found = (_model_in(argument) for argument in typing.get_args(annotation))
    return next((model for model in found if model is not None), None)


def _section(section: Section) -> str:
    where = ", ".join(f"`{path}`" for path in section.paths)
    lines = [f"### {section.model.__name__}\n", f"{where}. {_cell(inspect.getdoc(section.model) or '')}\n"]
    lines += ["| field | type | default | |", "|---|---|---|---|"]
    for name, info in _fields(section.model):
        node = section.schema["properties"][name]
        description = _cell(node.get("description", ""))
        lines.append(f"| `{name}` | {_type(node, info)} | {_default(info)} | {description} |")
    return "\n".join(lines) + "\n" + _rules(section.schema)


def _type(node: schema.Schema, info: FieldInfo | None = None) -> str:
    inner = _model_in(info.annotation) if info is not None else None
    link = f"[{inner.__name__}](#{inner.__name__.lower()})" if inner is not None else None
    if node.get("type") == "array":
        return f"list of {link or _plain(node['items'])}{_size(node, 'Items', 'items')}"
    if link is not None:
        return link
    if "enum" in node:
        return " \\| ".join(f"`{value}`" for value in node["enum"])
    if node.get("x-kubernetes-int-or-string"):
        return "quantity"
    if isinstance(node.get("additionalProperties"), dict):
        return (
            f"map of string to {_plain(node['additionalProperties'])}{_size(node, 'Properties', 'entries')}"
        )
    if node["type"] == "string":
        pattern = f", `{node['pattern']}`".replace("|", "\\|") if "pattern" in node else ""
        return f"string{_size(node, 'Length', 'characters')}{pattern}"
    return str(node["type"]) + _range(node)


def _plain(node: schema.Schema) -> str:
    """The type of an element; its own limits are in the schema, and would read as those of the list."""
    return "quantity" if node.get("x-kubernetes-int-or-string") else str(node.get("type", "any value"))


def _size(node: schema.Schema, what: str, unit: str) -> str:
    low, high = node.get(f"min{what}", 0), node.get(f"max{what}")
    if high is None or high == MAX_NAME_LENGTH:
        return ""
    if low == high:
        return f" ({low} {unit})"
    return f" ({low}-{high} {unit})" if low and unit != "characters" else f" (at most {high} {unit})"


def _range(node: schema.Schema) -> str:
    words = []
    if "minimum" in node:
        words.append(f"{'>' if node.get('exclusiveMinimum') else '≥'} {_number(node['minimum'])}")
    if "maximum" in node:
        words.append(f"{'<' if node.get('exclusiveMaximum') else '≤'} {_number(node['maximum'])}")
    return "".join(f", {word}" for word in words)


def _number(value: float) -> str:
    """As people write it: 2e-5 and not 2e-05, 1 and not 1.0."""
    return re.sub(r"e([-+])0+", r"e\1", f"{value:.10g}")


def _default(info: FieldInfo) -> str:
    if info.is_required():
        return "**required**"
    value = info.get_default(call_default_factory=True, validated_data={})
    if value is None or isinstance(value, BaseModel) or value in ({}, [], ""):
        return ""
    if isinstance(value, str):
        return f"`{value}`"
    return f"`{_number(value)}`" if isinstance(value, float) else f"`{json.dumps(value)}`"


def _rules(node: schema.Schema) -> str:
    rules = node.get("x-kubernetes-validations", [])
    nested = [item for item in node.get("properties", {}).values() if item.get("type") == "string"]
    messages = [rule["message"] for rule in rules]
    messages += sorted(
        {rule["message"] for item in nested for rule in item.get("x-kubernetes-validations", [])}
    )
    return "".join(["\nRules:\n\n", *(f"- {message}\n" for message in messages)]) if messages else ""


def _conditions() -> str:
    lines = [
        "## Conditions\n",
        "All are there from the first pass on. `kubectl wait --for=condition=Complete sftjob/NAME`.",
    ]
    lines += ["The reasons are in [conditions.md](conditions.md).\n", "| type | True means |", "|---|---|"]
    lines += [f"| `{name}` | {CONDITION_MEANINGS[name]} |" for name in status.CONDITION_TYPES]
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def _without_comments(manifest: str) -> str:
    lines = [line for line in manifest.splitlines() if not line.startswith("#")]
    return "\n".join(lines).strip()
