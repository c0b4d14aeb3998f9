"""What all API models share: camelCase in JSON, immutability, and the types that only Kubernetes has."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema
from pydantic.alias_generators import to_camel


class ApiModel(BaseModel):
    """Unknown fields are ignored: an older operator must survive newer objects. The CLI forbids them."""

    model_config = ConfigDict(
        alias_generator=to_camel, populate_by_name=True, extra="ignore", frozen=True, protected_namespaces=()
    )


def rules(*pairs: tuple[str, str]) -> dict[str, Any]:
    """CEL rules for `json_schema_extra`: pairs of rule and message, which names the field and the fix."""
    return {"x-kubernetes-validations": [{"rule": rule, "message": message} for rule, message in pairs]}


def exactly_one_of(owner: str, *fields: str) -> tuple[str, str]:
    """The CEL rule that exactly one of `fields` is set in `owner` (its path in the spec, for the message)."""
    count = " + ".join(f"(has(self.{field}) ? 1 : 0)" for field in fields)
    return f"{count} == 1", f"{owner}: set exactly one of {', '.join(fields)}"


def at_most_one_of(owner: str, *fields: str) -> tuple[str, str]:
    """The CEL rule that no two of `fields` are set in `owner`."""
    count = " + ".join(f"(has(self.{field}) ? 1 : 0)" for field in fields)
    return f"{count} <= 1", f"{owner}: set at most one of {', '.join(fields)}"


Quantity = Annotated[
    int | str,
    WithJsonSchema({"x-kubernetes-int-or-string": True, "anyOf": [{"type": "integer"}, {"type": "string"}]}),
]
"""A Kubernetes quantity such as 500m, 64Gi or 8."""

Passthrough = Annotated[
    dict[str, Any], WithJsonSchema({"type": "object", "x-kubernetes-preserve-unknown-fields": True})
]
"""A piece of core/v1 that we hand on as it is; the API server checks it when the Job is created."""

RawConfig = Annotated[
    dict[str, Any],
    WithJsonSchema(
        {"type": "object", "additionalProperties": {"x-kubernetes-preserve-unknown-fields": True}}
    ),
]
"""A configuration in another program's own words. Not a Passthrough: CEL's equality sees a key that replaces
another only in a map with declared values (tried), and immutability rests on that."""

RelativePath = Annotated[
    str,
    Field(min_length=1, max_length=1024),
    WithJsonSchema(
        {
            "type": "string",
            "minLength": 1,
            "maxLength": 1024,
            "x-kubernetes-validations": [
                {
                    # Not split(): Kubernetes has it, CEL's standard (and so LocalCluster) has not.
                    "rule": "!self.startsWith('/') && !self.matches('(^|/)[.][.](/|$)')",
                    "message": "a path is relative to the workspace and cannot leave it: "
                    "remove the leading / and every ..",
                }
            ],
        }
    ),
]
ModelUri = Annotated[
    str,
    WithJsonSchema(
        {
            "type": "string",
            "maxLength": 1024,
            # Rules and not patterns: a pattern's message is the pattern.
            **rules(
                (
                    "self.matches('^hf://[^/ ]+/[^/ ]+$') || self.matches('^s3://[^/ ]+/[^/].*$')",
                    "write hf://<organisation>/<name>, with @<revision> behind it where wanted, or "
                    "s3://<bucket>/<folder>; other stores are not supported, copy the model to the workspace and use path",
                )
            ),
        }
    ),
]
"""A repository on the Hugging Face hub, or a folder of a store."""

DataUri = Annotated[
    str,
    WithJsonSchema(
        {
            "type": "string",
            "maxLength": 1024,
            **rules(
                (
                    "self.matches('^s3://[^/ ]+/[^/].*$') || self.matches('^https://[^/@ ]+/[^ ]+$')",
                    "write s3://<bucket>/<object, folder or glob> or https://<host>/<file>; other stores are not "
                    "supported, copy the data to the workspace and use path",
                )
            ),
        }
    ),
]
"""Files of a store, or one of a web server."""

NewToken = Annotated[
    str,
    Field(min_length=1, max_length=64),
    WithJsonSchema(
        {
            "type": "string",
            "minLength": 1,
            "maxLength": 64,
            **rules(
                (
                    "self.matches('^[^ \\t\\r\\n]+$')",
                    "a token has no white space: remove it, or write _ in its place",
                )
            ),
        }
    ),
]
"""A text that becomes one entry of a vocabulary."""

ObjectName = Annotated[str, Field(min_length=1, max_length=253)]
