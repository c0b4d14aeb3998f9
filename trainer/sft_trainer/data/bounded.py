"""Jinja's sandbox, which keeps a template from this machine, and bounds, which the sandbox has none of.

A chat template is a stranger's program. It could loop for ever or make a text of gigabytes of three lines. So every turn
of a loop and every call is counted, whatever is kept in a variable or written is measured, and the few operations that
make much of little (`'a' * n`, `replace`, `center`) are measured before they are done.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from jinja2 import nodes, sandbox
from jinja2.runtime import Context, LoopContext

STEPS = 2_000_000
"""Turns of loops and calls in one rendering: half a minute; a conversation takes about ten for each message."""
LENGTH = 32 << 20
"""Characters of a text."""
ELEMENTS = 1_000_000
"""Of a list, with those of the lists in it."""
ROOM = 16 * LENGTH
"""Characters of all texts that one rendering keeps, passes and writes."""
NUMBER = 1_000_000
"""The largest that a function may be given: it can be the width of a text."""

_TURNS, _KEPT = "sftjob: turns", "sftjob: kept"  # names of filters that no template can write
OWN_FILTERS = frozenset({_TURNS, _KEPT})
_WIDE = re.compile(r"[0-9]{7}|%[^a-zA-Z%]*\*")
_INDENT = 64
_MEASURED = ("batch", "center", "format", "indent", "join", "replace", "slice", "wordwrap")


class Unbounded(BaseException):
    """A template does too much. No Exception, for jinja's tests swallow those."""


class BoundedEnvironment(sandbox.ImmutableSandboxedEnvironment):
    """The environment of one template; `left` is what it may still do."""

    intercepted_binops = frozenset({"*", "**", "%"})

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.begin()
        self.globals.pop("lipsum")  # a maker of long texts
        self.filters |= {name: measured(name, self.filters[name]) for name in _MEASURED}
        self.filters |= {_TURNS: self._turns, _KEPT: self._kept}

    def begin(self) -> None:
        """A rendering, which may do as much as any."""
        self.left, self.room = STEPS, ROOM

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """The three operators that make much of little."""
        if operator == "%" and isinstance(left, str):
            _check_format(left)
        elif operator == "*":
            for several, times in ((left, right), (right, left)):
                if isinstance(times, int) and (isinstance(several, str | list | tuple)):
                    _check_length(_weight(several) * max(times, 0))
        if all(isinstance(each, int) for each in (left, right)) and operator != "%":
            _check_number(left, right, "**" if operator == "**" else "*")
        return super().call_binop(context, operator, left, right)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        """Functions, macros, methods of texts, and a loop that goes into itself."""
        __self._step()
        if args or kwargs:
            for value in (*args, *kwargs.values()):
                __self._kept(value)
            _check_arguments(__obj, (*args, *kwargs.values()))
            if isinstance(__obj, LoopContext) and args:
                args = (__self._turns(args[0]), *args[1:])
        return __self._kept(super().call(__context, __obj, *args, **kwargs))

    @staticmethod
    def concat(pieces: Iterable[str]) -> str:
        """What is written, in the end."""
        written: list[str] = []
        length = 0
        for piece in pieces:
            length += _length(piece)
            if length > LENGTH:
                _check_length(length)
            written.append(piece)
        return "".join(written)

    def _generate(self, source: nodes.Template, *args: Any, **kwargs: Any) -> Any:
        for loop in source.find_all(nodes.For):
            loop.iter = _filtered(loop.iter, _TURNS)
        for assign in source.find_all(nodes.Assign):
            assign.node = _filtered(assign.node, _KEPT)
        for block in source.find_all(nodes.AssignBlock):
            block.filter = _filtered(block.filter, _KEPT)
        for scope in source.find_all(nodes.With):
            scope.values = [_filtered(value, _KEPT) for value in scope.values]
        for kind in (nodes.Macro, nodes.CallBlock, nodes.FilterBlock, nodes.AssignBlock):
            for written in (
                output for held in source.find_all(kind) for output in held.find_all(nodes.Output)
            ):
                written.nodes = [
                    each if isinstance(each, nodes.TemplateData) else _filtered(each, _KEPT)
                    for each in written.nodes
                ]
        return super()._generate(source, *args, **kwargs)

    def _turns(self, values: Iterable[Any]) -> Iterator[Any]:
        for value in values:
            self._step()
            yield value

    def _kept(self, value: Any) -> Any:
        """The value of a variable or argument, or what a macro writes, if it is not too large."""
        if type(value) is str:  # most are
            weight = len(value)
        elif isinstance(value, str | list | tuple | dict):
            weight = _weight(value)
        else:
            return value
        self.room -= weight
        if weight > LENGTH or self.room < 0:
            _check_length(weight)
            raise Unbounded(f"makes more than {ROOM >> 20} million characters of one row")
        return value

    def _step(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise Unbounded("does not come to an end")


def _filtered(value: Any, name: str) -> nodes.Filter:
    """None is the output of a block."""
    line = value.lineno if value is not None else 1
    return nodes.Filter(value, name, [], [], None, None, lineno=line)


def _weight(value: Any) -> int:
    """Characters and elements in `value`: as many as would be written, also of what it holds many times."""
    if isinstance(value, str):
        return _length(value)
    weight, elements, waiting = 0, 0, [value]
    while waiting:
        one = waiting.pop()
        elements += 1
        if isinstance(one, str):
            weight += _length(one)
        elif isinstance(one, dict):
            waiting += one.values()
        elif isinstance(one, list | tuple):
            waiting += one
        if elements + len(waiting) > ELEMENTS:
            raise Unbounded(f"makes lists of more than {ELEMENTS:,} elements")
    return weight + elements


_length = str.__len__  # not len: shapes.py has texts that may not be asked


def _check_length(length: int) -> None:
    if length > LENGTH:
        raise Unbounded(f"makes more than {LENGTH >> 20} million characters of one row")


def _check_number(left: int, right: int, operator: str) -> None:
    bits = left.bit_length() * max(right, 1) if operator == "**" else left.bit_length() + right.bit_length()
    if bits > 4096:
        raise Unbounded("reckons with numbers of more than a thousand digits")


def _check_format(form: str) -> None:
    if _WIDE.search(form):
        raise Unbounded("formats to a width of millions")


def _replaced(text: str, old: Any, new: Any) -> int:
    if not isinstance(old, str) or not isinstance(new, str):
        return 0
    return len(text) + text.count(old) * max(len(new) - len(old), 0)


def _check_arguments(function: Any, values: tuple[Any, ...]) -> None:
    """Before it is called: functions of Python's own say nothing until they are done."""
    for value in values:
        if isinstance(value, int) and value > NUMBER:
            raise Unbounded(f"calls a function with a number above {NUMBER:,}")
    method = getattr(function, "__wrapped__", function)
    text, name = getattr(method, "__self__", None), getattr(method, "__name__", "")
    if not isinstance(text, str):
        return
    if name in ("format", "format_map"):
        _check_format(text)
    elif name == "replace" and len(values) > 1:
        _foresee(name, text, list(values))
    elif name == "join" and values:
        _foresee("join", values[0], [text])
    elif name == "translate":
        _check_length(len(text) * max(map(_weight, values), default=1))


def measured(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter whose result is foreseen."""
    skipped = 1 if hasattr(function, "jinja_pass_arg") else 0

    @functools.wraps(function)
    def bounded(*args: Any, **kwargs: Any) -> Any:
        if len(args) > skipped and isinstance(args[skipped], Iterator | range):
            args = (*args[:skipped], list(args[skipped]), *args[skipped + 1 :])
        first, *others = (*args[skipped:], *kwargs.values(), "")
        _check_arguments(None, tuple(others))
        _foresee(name, first, others)
        return function(*args, **kwargs)

    return bounded


def _foresee(name: str, first: Any, others: list[Any]) -> None:
    """Unbounded if the filter `name` would make too much of its `first` argument and the `others`."""
    most = max(
        each if isinstance(each, int) else len(each) if isinstance(each, str) else 0 for each in others
    )
    if name == "format" and isinstance(first, str):
        _check_format(first)
    elif name == "tojson" and most > _INDENT:
        raise Unbounded(f"indents by more than {_INDENT}")
    elif name == "join" and isinstance(first, list | tuple):
        _check_length(_weight(first) + len(first) * most)
    elif name == "replace" and isinstance(first, str):
        _check_length(_replaced(first, *others[:2]))
    elif name == "indent" and isinstance(first, str):
        _check_length(len(first) + first.count("\n") * most)
    elif name == "wordwrap" and isinstance(first, str):
        _check_length(len(first) * max((len(each) for each in others if isinstance(each, str)), default=1))
