"""A conversation as the text that the model reads, with the spans of it that carry loss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from sft_trainer.data import completeness
from sft_trainer.data.formats import Conversation, Message, RowError
from sft_trainer.data.locating import locate, rendered
from sft_trainer.data.shapes import Shape, shape
from sft_trainer.data.template import ChatTemplate, Span, TemplateError


class Supervision(NamedTuple):
    """The rendered text of a conversation and the spans which carry loss, in order, each with its weight (None: all 1)."""

    text: str
    spans: tuple[Span, ...]
    weights: tuple[float, ...] | None = None


def supervise(conversation: Conversation, template: ChatTemplate, loss_on: str) -> Supervision:
    """Render `conversation` and locate what `loss_on` (Assistant, LastAssistant, AllTokens) supervises.

    Turns after the last answer carry no loss and are left out, except with AllTokens.
    RowError (NoAssistantTurn, InvalidRow) if the row cannot be trained on.
    """
    everything = loss_on == "AllTokens"
    answers = [index for index, message in enumerate(conversation.messages) if message.role == "assistant"]
    if not answers and not everything:
        raise RowError("no assistant turn, so there is nothing to learn from", "NoAssistantTurn")
    messages = conversation.messages if everything else conversation.messages[: answers[-1] + 1]
    known = _shape(messages, conversation, template)
    if known is not None:
        text, spans = known.fill([message.content for message in messages])
        _check_text(text)
    else:
        text = _render(messages, conversation, template)
        spans = [] if everything else locate(text, messages, conversation, template)
    if everything:
        return Supervision(text, (Span(0, len(text)),))
    if loss_on == "LastAssistant":
        answers, spans = answers[-1:], spans[-1:]
    weights = tuple([messages[index].weight for index in answers])
    if all(weight == 1 for weight in weights):
        return Supervision(text, tuple(spans))
    spans = [span for span, weight in zip(spans, weights, strict=True) if weight > 0]
    weights = tuple([weight for weight in weights if weight > 0])
    return Supervision(text, tuple(spans), None if all(weight == 1 for weight in weights) else weights)


def _shape(messages: Sequence[Message], conversation: Conversation, template: ChatTemplate) -> Shape | None:
    """Tools, calls and blank contents are rendered row by row: what a template makes of them depends on them."""
    if conversation.tools or any(m.extra or not m.content or m.content.isspace() for m in messages):
        return None
    return shape(template, tuple([message.role for message in messages]))


def _render(messages: Sequence[Message], conversation: Conversation, template: ChatTemplate) -> str:
    try:
        text = rendered(template, messages, conversation)
    except TemplateError as exc:
        raise RowError(f"the chat template refuses the conversation: {exc}") from exc
    _check_text(text)
    completeness.check(text, messages, conversation, template)
    return text


def _check_text(text: str) -> None:
    if text.isascii():
        return
    try:
        text.encode()
    except UnicodeEncodeError as exc:
        around = ascii(text[max(0, exc.start - 20) : exc.end])
        raise RowError(f"half of a character (a lone surrogate) stands at the end of {around}") from exc
