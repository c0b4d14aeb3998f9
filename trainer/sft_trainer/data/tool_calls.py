"""Tools and calls as chat templates expect them: OpenAI's form, with arguments that are objects.

Data sets write them in other ways: ShareGPT as the JSON text of a turn, OpenAI with arguments as JSON text in JSON.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any


def written(value: Any) -> list[dict[str, Any]]:
    """The calls that a ShareGPT `function_call` turn says in JSON; none if it says something else."""
    found = _parsed(value)
    calls = found if isinstance(found, list) else [found]
    if not all(isinstance(call, dict) and {"name", "arguments"} <= call.keys() for call in calls):
        return []
    return [
        {"type": "function", "function": {"name": call["name"], "arguments": call["arguments"]}}
        for call in calls
    ]


def with_objects(calls: Any) -> Any:
    """`calls` with every text of arguments read; what has another shape is left to the template."""
    if not isinstance(calls, Sequence) or isinstance(calls, str):
        return calls
    return [_with_object(call) for call in calls]


def declared(tools: Sequence[Any]) -> tuple[Any, ...]:
    """ShareGPT's tools, bare functions, in OpenAI's form."""
    return tuple(
        {"type": "function", "function": tool}
        if isinstance(tool, Mapping) and "name" in tool and "function" not in tool
        else tool
        for tool in tools
    )


def _with_object(call: Any) -> Any:
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("arguments"), str):
        return call
    arguments = _parsed(function["arguments"])
    return {**call, "function": {**function, "arguments": arguments}} if isinstance(arguments, dict) else call


def _parsed(text: Any) -> Any:
    try:
        return json.loads(text) if isinstance(text, str) else None
    except (ValueError, RecursionError):
        return None
