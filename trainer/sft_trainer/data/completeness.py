"""Refuses a row of which the chat template leaves something out: nobody would notice that it was not trained on.

Templates ignore what they do not know: a role, `tools`, an answer's `tool_calls`. Whether the text says them is
asked of the rendering, not of the template's source, which may name them for another purpose.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sft_trainer.data.formats import Conversation, Message, RowError
from sft_trainer.data.template import ChatTemplate, TemplateError


def check(text: str, messages: Sequence[Message], conversation: Conversation, template: ChatTemplate) -> None:
    """RowError unless `text`, the rendering of `messages`, holds their words, their tool calls and the tools."""
    turns = [message.for_template() for message in messages]
    if conversation.tools and _is_same(text, turns, None, template):
        raise RowError(
            "the chat template has no place for `tools`; set model.chatTemplate to one that has, "
            "or remove them from the rows"
        )
    for index, message in enumerate(messages):
        if "tool_calls" in (message.extra or {}):
            without = {key: item for key, item in turns[index].items() if key != "tool_calls"}
            if _is_same(text, _replaced(turns, index, without), conversation.tools, template):
                raise RowError(
                    f"message {index + 1}: the assistant calls tools, which the chat template leaves out; "
                    "set model.chatTemplate to one that renders tool_calls, or remove the row"
                )
        words = message.content.strip()
        if message.role != "assistant" and words and words not in text:  # the template may rewrite them
            without = {**turns[index], "content": ""}
            if _is_same(text, _replaced(turns, index, without), conversation.tools, template):
                raise RowError(
                    f"message {index + 1}: the chat template leaves out the words of the role {message.role!r}"
                )


def _replaced(turns: Sequence[dict[str, Any]], index: int, turn: dict[str, Any]) -> list[dict[str, Any]]:
    return [*turns[:index], turn, *turns[index + 1 :]]


def _is_same(
    text: str, turns: Sequence[dict[str, Any]], tools: Sequence[Any] | None, template: ChatTemplate
) -> bool:
    try:
        return template.render(turns, tools).text == text
    except TemplateError:
        return False
