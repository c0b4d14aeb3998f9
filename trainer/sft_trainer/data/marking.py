"""Puts a marker in the place of what an answer says, so that its template shows where that goes.

Of an answer without words, a call, it is the name of the function: templates ask whether there are words, and write
line breaks and empty thoughts accordingly, so one without must not get any.
"""

from __future__ import annotations

from typing import Any

from sft_trainer.data.formats import Message


def said(message: Message) -> str:
    """What the marker replaces."""
    calls = _calls(message)
    return str(calls[0]["function"]["name"]) if calls else message.content


def marked_by(message: Message, thoughts: str, marker: str) -> Message:
    """`message` with `marker` behind its `thoughts`, or as the name in its first call."""
    calls = _calls(message)
    if not calls:
        return message._replace(content=thoughts + marker)
    first = {**calls[0], "function": {**calls[0]["function"], "name": marker}}
    return message._replace(extra={**(message.extra or {}), "tool_calls": [first, *calls[1:]]})


def thoughts_of(answer: str) -> str:
    """The part of an answer that templates may leave out of earlier turns, up to the first word after it."""
    head, close, rest = answer.rpartition("</think>")
    return head + close + rest[: len(rest) - len(rest.lstrip())] if close else ""


def _calls(message: Message) -> list[Any]:
    """The calls of an answer without words, if they are OpenAI's."""
    calls = (message.extra or {}).get("tool_calls")
    try:
        is_plain = not message.content.strip() and isinstance(calls[0]["function"]["name"], str)  # type: ignore[index]
    except (LookupError, TypeError):
        return []
    return list(calls) if is_plain and calls else []
