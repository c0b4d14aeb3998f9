"""Renders a conversation from the shape it shares with others, where the template provably would say the same.

Most chat templates write contents out without looking at them: then all conversations of the same roles have the same
text around their contents, and their answers the same place in it. Such a shape is rendered and located once. The proof
is made by the template itself: it is rendered with words which may be written, joined by + and stripped, and which end
the attempt when anything else is asked of them (`if '</think>' in content`). What could look at a text behind their
back, Python's own functions in C, is kept out by looking at the template's syntax.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from jinja2 import nodes

from sft_trainer.data.ending import ending
from sft_trainer.data.formats import Conversation, Message, RowError
from sft_trainer.data.locating import by_prefixes, locate, rendered
from sft_trainer.data.template import ChatTemplate, Span, TemplateError

# No kind of escaping leaves such a mark as it is; the name in it would still be found where one was changed.
_MARK, _NAME = '\ufdd2"<\nSFTJOBWORD{}{}\ufdd3', "SFTJOBWORD"
_MARKS = re.compile('\ufdd2"<\n' + _NAME + "([0-9]+)([=~])\ufdd3")
_AS_IT_IS, _STRIPPED = "=", "~"

_FILTERS = {
    "trim",
    "tojson",
    "length",
    "list",
    "default",
    "first",
    "last",
    "string",
    "selectattr",
    "rejectattr",
}
_MAKE_PLAIN_TEXT = (nodes.Concat, nodes.AssignBlock, nodes.Macro, nodes.CallBlock, nodes.FilterBlock)
_OTHER_TEMPLATES = (nodes.Extends, nodes.Include, nodes.Import, nodes.FromImport)


class _LookedAt(BaseException):
    """The template asked what a content says. No Exception, for jinja's tests swallow those."""


class _Word(str):
    """A content of which nothing is known but that it is a text and not blank."""

    __slots__ = ()

    def __str__(self) -> str:
        return self

    def __bool__(self) -> bool:
        return True

    def __add__(self, other: str) -> _Word:
        return _Word(str.__add__(self, other))

    def __radd__(self, other: str) -> _Word:
        return _Word(str.__add__(other, self))

    def strip(self, chars: str | None = None) -> _Word:
        """The same content with another mark; what is joined to a text cannot be stripped unseen."""
        found = _MARKS.fullmatch(self)
        if chars is not None or found is None:
            raise _LookedAt
        return _Word(_MARK.format(found[1], _STRIPPED))


def _refuse(*_: Any, **__: Any) -> NoReturn:
    raise _LookedAt


for _name in (
    set(dir(str)) - set(vars(_Word)) - {"__class__", "__new__", "__init__", "__getattribute__", "__doc__"}
):
    setattr(_Word, _name, _refuse)


@dataclass(frozen=True, slots=True)
class Shape:
    """`pieces[0] content pieces[1] content … pieces[n]`, and the answers' places, each as (piece, character)."""

    pieces: tuple[str, ...]
    contents: tuple[tuple[int, bool], ...]  # which message's, and whether it is stripped
    spans: tuple[tuple[tuple[int, int], tuple[int, int]], ...]

    def fill(self, contents: Sequence[str]) -> tuple[str, list[Span]]:
        """The rendering of a conversation with these contents, and one span for each answer in it."""
        parts, starts, length = [self.pieces[0]], [0], len(self.pieces[0])
        for (index, strips), piece in zip(self.contents, self.pieces[1:], strict=True):
            words = contents[index].strip() if strips else contents[index]
            starts.append(length + len(words))
            length = starts[-1] + len(piece)
            parts += (words, piece)
        spans = [Span(starts[i] + start, starts[j] + end) for (i, start), (j, end) in self.spans]
        return "".join(parts), spans


@functools.lru_cache(maxsize=4096)
def shape(template: ChatTemplate, roles: tuple[str, ...]) -> Shape | None:
    """The shape of conversations of these roles whose contents are not blank; None if it cannot be proven."""
    if not _is_transparent(template):
        return None
    try:
        text = _rendered_unseen(template, roles)
        plain = Conversation(tuple(Message(role, _MARK.format(i, _AS_IT_IS)) for i, role in enumerate(roles)))
        if by_prefixes(rendered(template, plain.messages, plain), plain.messages, plain, template) is None:
            return None
        spans = locate(rendered(template, plain.messages, plain), plain.messages, plain, template)
    except (_LookedAt, TemplateError, RowError):
        return None
    marks = list(_MARKS.finditer(text))
    edges = [0, *(edge for mark in marks for edge in mark.span()), len(text)]
    pieces = tuple(text[start:end] for start, end in zip(edges[::2], edges[1::2], strict=True))
    places = [_place(position, edges) for span in spans for position in span]
    if any(_NAME in piece for piece in pieces) or {int(mark[1]) for mark in marks} != set(range(len(roles))):
        return None
    if None in places or not all(_ends_alike(template, pieces, place) for place in places[1::2]):
        return None
    contents = tuple((int(mark[1]), mark[2] == _STRIPPED) for mark in marks)
    return Shape(pieces, contents, tuple(zip(places[::2], places[1::2], strict=True)))  # type: ignore[arg-type]


def _rendered_unseen(template: ChatTemplate, roles: Sequence[str]) -> str:
    """The rendering with unknown words. Those that locating the answers rests on must be as blind."""
    template = template.with_filters(_FILTERS, _refuse)
    talk = [{"role": role, "content": _Word(_MARK.format(i, _AS_IT_IS))} for i, role in enumerate(roles)]
    for index, role in enumerate(roles):
        if role == "assistant":
            template.render(talk[:index], add_generation_prompt=True)
            template.render(talk[: index + 1])
    return template.render(talk).text


def _place(position: int, edges: Sequence[int]) -> tuple[int, int] | None:
    """`position` as (piece, character); None within a content."""
    for piece, (start, end) in enumerate(zip(edges[::2], edges[1::2], strict=True)):
        if start <= position <= end:
            return piece, position - start
    return None


def _ends_alike(template: ChatTemplate, pieces: Sequence[str], end: tuple[int, int] | None) -> bool:
    """Whether an answer ends there whatever its words are: in the template's own text, and not at a blank."""
    assert end is not None
    tail, known = pieces[end[0]][: end[1]], ending(template)
    if known is not None and known.last != known.every and known.last.endswith(tail):
        return False  # an answer whose own words go on as the conversation's end does
    return tail == tail.rstrip() != ""


@functools.lru_cache(maxsize=8)
def _is_transparent(template: ChatTemplate) -> bool:
    """Whether no expression of the template makes a plain text of words, or hands them to what would read them."""
    tree = template.syntax()
    if any(tree.find_all((*_MAKE_PLAIN_TEXT, *_OTHER_TEMPLATES))):
        return False
    chosen = [found for found in tree.find_all(nodes.Filter) if found.name in ("selectattr", "rejectattr")]
    if not all(_is_constant(found.args[0], "role") for found in chosen):
        return False
    for call in tree.find_all(nodes.Call):  # 'text'.startswith(content)
        if isinstance(call.node, nodes.Getattr | nodes.Getitem):
            values = [*call.args, *(keyword.value for keyword in call.kwargs)]
            if not all(isinstance(value, nodes.Const) for value in values):
                return False
    if any(test.name == "in" for test in tree.find_all(nodes.Test)):
        return False
    kept = {"content", *(reference.attr for reference in tree.find_all(nodes.NSRef))}
    for compare in tree.find_all(nodes.Compare):  # content in 'text'; 'text' in content asks the content
        for operand in compare.ops:
            if operand.op in ("in", "notin") and not isinstance(operand.expr, nodes.List | nodes.Tuple):
                if not _is_no_content(compare.expr, kept):
                    return False
    return True


def _is_no_content(expression: nodes.Expr, kept: Collection[str]) -> bool:
    """A constant, or an attribute of another name than those under which contents are `kept`."""
    if isinstance(expression, nodes.Getattr):
        return expression.attr not in kept
    if isinstance(expression, nodes.Getitem):
        return isinstance(expression.arg, nodes.Const) and expression.arg.value not in kept
    return isinstance(expression, nodes.Const)


def _is_constant(expression: nodes.Expr, value: str) -> bool:
    return isinstance(expression, nodes.Const) and expression.value == value
