"""Chat templates: jinja, compiled once, rendered as transformers renders them but without importing it.

A template comes from a model's repository, so it runs in jinja's immutable sandbox, and within bounds (bounded.py).
`{% generation %}` blocks, with which some templates mark what the assistant says, leave invisible marks in the
rendering; they are taken out again and returned as spans.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser

from sft_trainer.data.bounded import OWN_FILTERS, BoundedEnvironment, Unbounded, measured
from sft_trainer.errors import UserError

# Two noncharacters of Unicode: a valid text never contains them, and jinja passes them through.
_OPEN, _CLOSE = "\ufdd0", "\ufdd1"

# What a foreign template may end with on a row; RuntimeError for its recursion, ArithmeticError for its sums.
_REFUSALS = (
    jinja2.TemplateError,
    ArithmeticError,
    AttributeError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)


class TemplateError(ValueError):
    """The template refused the conversation, or is no valid jinja; in the template's own words."""


class Span(NamedTuple):
    """Characters `start` to `end` (exclusive) of a rendering."""

    start: int
    end: int


class Rendering(NamedTuple):
    """A rendered conversation and what the template's own generation blocks marked in it."""

    text: str
    generated: tuple[Span, ...]


class _Generation(jinja2.ext.Extension):
    """Parses `{% generation %} … {% endgeneration %}` and surrounds its output with marks."""

    tags = {"generation"}  # noqa: RUF012  (jinja declares it as an instance attribute)

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_mark"), [], [], body).set_lineno(line)

    def _mark(self, caller: Any) -> str:
        return f"{_OPEN}{caller()}{_CLOSE}"


class ChatTemplate:
    """One compiled template with the special tokens that it may name (bos_token, eos_token, …).

    `tokens` are all texts which the tokenizer takes as one token, those and what it calls added tokens. Its clock stands
    still at the beginning of `today`: what is rendered over midnight is of one day.
    """

    def __init__(
        self,
        source: str,
        special_tokens: Mapping[str, str] | None = None,
        added_tokens: Collection[str] = (),
    ) -> None:
        """Compile `source`; TemplateError if it is not valid jinja, or computes too much before any row is there."""
        self.source = source
        self._special_tokens = dict(special_tokens or {})
        self.today = _today()
        self.tokens = frozenset({*self._special_tokens.values(), *added_tokens} - {""})
        try:
            self._environment = _environment(self.today)
            self._template = self._environment.from_string(source)
        except jinja2.TemplateSyntaxError as exc:
            raise TemplateError(f"line {exc.lineno}: {exc.message}") from exc
        except (RecursionError, MemoryError, SyntaxError) as exc:
            raise TemplateError("it is nested too deeply") from exc
        except (Unbounded, ArithmeticError, ValueError) as exc:
            raise TemplateError(f"it {exc}") from exc

    @property
    def eos(self) -> str:
        """The text of the token at which the model stops; empty if its tokenizer names none."""
        return self._special_tokens.get("eos_token", "")

    def uses(self, name: str) -> bool:
        """Whether the template's source speaks of `name` at all."""
        return name in self.source

    def syntax(self) -> jinja2.nodes.Template:
        """The template's syntax tree."""
        return self._environment.parse(self.source)

    def with_filters(self, known: Collection[str], other: Callable[..., Any]) -> ChatTemplate:
        """The same template, in which every filter that is not `known` is `other`."""
        made = copy.copy(self)
        made._environment = _environment(self.today)
        made._environment.optimized = False  # which would run them on constants
        filters = made._environment.filters
        filters.update({name: other for name in filters if name not in known and name not in OWN_FILTERS})
        made._template = made._environment.from_string(self.source)
        return made

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Any] | None = None,
        *,
        add_generation_prompt: bool = False,
    ) -> Rendering:
        """The conversation as text; TemplateError if the template refuses it, UserError if it never ends."""
        self._environment.begin()
        try:
            marked = self._template.render(
                messages=messages,
                tools=tools,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                **self._special_tokens,
            )
        except _REFUSALS as exc:
            raise TemplateError(str(exc) or type(exc).__name__) from exc
        except Unbounded as exc:
            raise UserError(
                "InvalidChatTemplate",
                f"the model's chat template {exc}; set model.chatTemplate to another (preset: ChatML fits most)",
            ) from exc
        return _unmark(marked)


def _unmark(marked: str) -> Rendering:
    if _OPEN not in marked:
        return Rendering(marked, ())
    pieces: list[str] = []
    spans: list[Span] = []
    length = 0
    for number, piece in enumerate(marked.replace(_CLOSE, _OPEN).split(_OPEN)):
        if number % 2:
            spans.append(Span(length, length + len(piece)))
        pieces.append(piece)
        length += len(piece)
    return Rendering("".join(pieces), tuple(spans))


def _today() -> datetime:
    return datetime.now().replace(hour=0, minute=0, second=0, microsecond=0)


def _environment(today: datetime) -> BoundedEnvironment:
    environment = BoundedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = measured("tojson", _to_json)
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = today.strftime
    return environment


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Plain JSON, its arguments in transformers' order: jinja's own filter would escape for HTML."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)
