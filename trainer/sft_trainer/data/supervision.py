"""A conversation as the text that the model reads, with the spans of it that carry loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sft_trainer.data import completeness
from sft_trainer.data.formats import Conversation, Message, RowError
from sft_trainer.data.locating import locate, rendered
from sft_trainer.data.shapes import Shape, shape
from sft_trainer.data.template import ChatTemplate, Span, TemplateError


@dataclass(frozen=True, slots=True)
class Supervision:
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
    wanted = answers[-1:] if loss_on == "LastAssistant" else answers
    located = zip(answers, spans, strict=True)
    trained = [(span, messages[i].weight) for i, span in located if i in wanted and messages[i].weight > 0]
    weights = tuple(weight for _, weight in trained)
    is_even = all(weight == 1 for weight in weights)
    return Supervision(text, tuple(span for span, _ in trained), None if is_even else weights)


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
    try:
        text.encode()
    except UnicodeEncodeError as exc:
        around = ascii(text[max(0, exc.start - 20) : exc.end])
        raise RowError(f"half of a character (a lone surrogate) stands at the end of {around}") from exc
