"""Finds the assistant's words in a rendered conversation, for templates which do not say where they are.

The supervised span of a turn is everything the model has to generate after the generation prompt: the
answer and the end-of-turn token (see ending.py), not the line break behind it. Three ways, each verified on every row; a
row for which none holds is refused, because a wrong mask trains on the wrong words without an error:

1. the template's own `{% generation %}` blocks, if there is one for every answer and it contains the
   answer;
2. prefixes: the rendering of the first i messages with the generation prompt must be the beginning of the
   whole;
3. markers: answers replaced by unique words show the fixed text between them, which is then found in the
   whole.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from sft_trainer.data.ending import ending
from sft_trainer.data.formats import Conversation, Message, RowError
from sft_trainer.data.marking import marked_by, said, thoughts_of
from sft_trainer.data.template import ChatTemplate, Span, TemplateError

_MARKER = "xq{}zSFTJOBANSWERz{}qx"


def locate(
    text: str, messages: Sequence[Message], conversation: Conversation, template: ChatTemplate
) -> list[Span]:
    """One span for each assistant message of `messages` in `text`, their rendering."""
    for way in (_by_tags, by_prefixes, _by_markers):
        spans = way(text, messages, conversation, template)
        if spans is not None and _plausible(text, spans, messages):
            return _without_the_conversations_end(text, spans, template)
    raise RowError(
        "the assistant's words could not be located in the rendered conversation; "
        "the chat template rewrites them (try model.chatTemplate.preset: ChatML)"
    )


def _by_tags(
    text: str, messages: Sequence[Message], conversation: Conversation, template: ChatTemplate
) -> list[Span] | None:
    if not template.uses("endgeneration"):
        return None
    rendering = template.render([m.for_template() for m in messages], conversation.tools)
    answers = [message for message in messages if message.role == "assistant"]
    if len(rendering.generated) != len(answers):
        return None
    for span, answer in zip(rendering.generated, answers, strict=True):
        if answer.content.strip() not in text[span.start : span.end]:
            return None
    return _with_end_of_turn(text, rendering.generated, template)


def by_prefixes(
    text: str, messages: Sequence[Message], conversation: Conversation, template: ChatTemplate
) -> list[Span] | None:
    """Spans from where the generation prompt ends to where the turn ends; None if that differs in the whole."""
    spans: list[Span] = []
    for index, message in enumerate(messages):
        if message.role != "assistant":
            continue
        try:
            before = rendered(template, messages[:index], conversation, add_generation_prompt=True)
            after = text
            if index + 1 < len(messages):
                after = rendered(template, messages[: index + 1], conversation)
        except TemplateError:
            return None
        if not (text.startswith(after) and after.startswith(before)):
            return None
        spans.append(_trimmed(text, Span(len(before), len(after))))
    return spans


def _by_markers(
    text: str, messages: Sequence[Message], conversation: Conversation, template: ChatTemplate
) -> list[Span] | None:
    """The fixed pieces between markers, found again in `text` in order, with the answers between them."""
    salt = next(n for n in range(10**6) if f"xq{n}zSFTJOB" not in text)
    marked, markers, thoughts = [], [], []
    for index, message in enumerate(messages):
        if message.role == "assistant":
            markers.append(_MARKER.format(salt, index))
            thoughts.append(thoughts_of(message.content))
            message = marked_by(message, thoughts[-1], markers[-1])
        marked.append(message)
    try:
        pieces = _pieces(rendered(template, marked, conversation), markers)
    except TemplateError:
        return None
    spans = _between(pieces, text)
    answers = [said(message) for message in messages if message.role == "assistant"]
    if spans is None or any(text[s.start : s.end] not in a for s, a in zip(spans, answers, strict=True)):
        return None
    kept = [len(t) * text[: s.start].endswith(t) for s, t in zip(spans, thoughts, strict=True)]
    whole = [Span(s.start - k, s.end) for s, k in zip(spans, kept, strict=True)]
    places = [index for index, message in enumerate(messages) if message.role == "assistant"]
    prompts = [_prompt_end(text, messages[:place], conversation, template) for place in places]
    begun = [Span(min(s.start, p or s.start), s.end) for s, p in zip(whole, prompts, strict=True)]
    for number, place in enumerate(places):
        if not messages[
            place
        ].content.strip():  # a call: its name was found, it goes on to the end of the turn
            end = _call_end(text, begun[number].end, messages[place], template)
            if end is None or prompts[number] is None:
                return None
            begun[number] = Span(begun[number].start, end)
    return _with_end_of_turn(text, begun, template)


def _call_end(text: str, start: int, message: Message, template: ChatTemplate) -> int | None:
    """Behind the end-of-turn that follows; None if the template has none, or the call itself says it."""
    known = ending(template)
    if known is None or not known.stops or known.every in json.dumps(message.extra, default=str):
        return None
    found = text.find(known.every, start)
    return None if found < 0 else found + len(known.every)


def _prompt_end(
    text: str, before: Sequence[Message], conversation: Conversation, template: ChatTemplate
) -> int | None:
    """Where the generation prompt after `before` ends in `text`: what the template writes from there is to be learned.

    Qwen 3 begins an answer without thoughts with empty ones.
    """
    try:
        prompt = rendered(template, before, conversation, add_generation_prompt=True)
    except TemplateError:
        return None
    return len(prompt) if text.startswith(prompt) else None


def _pieces(text: str, markers: Sequence[str]) -> list[str]:
    """What stands before, between and behind the markers; empty unless each is there once, in order."""
    pieces = []
    for marker in markers:
        if text.count(marker) != 1:
            return []
        piece, _, text = text.partition(marker)
        pieces.append(piece)
    return [*pieces, text]


def _between(pieces: Sequence[str], text: str) -> list[Span] | None:
    """The gaps of `text` between `pieces`, which must be found in their order and at both ends."""
    if not pieces or not text.startswith(pieces[0]) or not text.endswith(pieces[-1]):
        return None
    spans: list[Span] = []
    start = len(pieces[0])
    for piece in pieces[1:-1]:
        found = text.find(piece, start)
        if found < 0:
            return None
        spans.append(Span(start, found))
        start = found + len(piece)
    return [*spans, Span(start, len(text) - len(pieces[-1]))]


def _with_end_of_turn(text: str, spans: Sequence[Span], template: ChatTemplate) -> list[Span]:
    """Spans that end with the answer, lengthened by the end-of-turn; the last one up to the end of the text."""
    known = ending(template)
    every = known.every if known is not None else text[spans[-1].end :].rstrip()
    longer = [Span(s.start, s.end + len(every) * text.startswith(every, s.end)) for s in spans[:-1]]
    return [_trimmed(text, span) for span in (*longer, Span(spans[-1].start, len(text)))]


def _without_the_conversations_end(text: str, spans: list[Span], template: ChatTemplate) -> list[Span]:
    """The last span cut like the others: what only closes a conversation comes after the model has stopped."""
    known = ending(template)
    if known is None or not known.stops:  # then the conversation's end is all that teaches to stop
        return spans
    start, end = spans[-1]
    beyond = len(known.last) - len(known.every)
    return [*spans[:-1], Span(start, end - beyond * text.endswith(known.last, start, end))]


def _trimmed(text: str, span: Span) -> Span:
    return Span(span.start, span.start + len(text[span.start : span.end].rstrip()))


def _plausible(text: str, spans: Sequence[Span], messages: Sequence[Message]) -> bool:
    """In order, not empty, and each beginning with words of its own answer's last paragraph or all of it."""
    if any(one.end > other.start for one, other in pairwise(spans)):
        return False
    answers = [message for message in messages if message.role == "assistant"]
    for span, answer in zip(spans, answers, strict=True):
        words = text[span.start : span.end]
        if not words or (answer.content.strip() and not _shares(words, answer.content)):
            return False
    return True


def _shares(words: str, answer: str) -> bool:
    """Whether `words` hold the answer, or what follows its reasoning (templates drop `<think>`)."""
    kept = answer.rpartition("</think>")[2].strip()
    return answer.strip() in words or (bool(kept) and kept in words)


def rendered(
    template: ChatTemplate, messages: Sequence[Message], conversation: Conversation, **more: Any
) -> str:
    """The text of `messages`, with the tools of `conversation`."""
    return template.render([m.for_template() for m in messages], conversation.tools, **more).text
