"""Rows of the usual chat formats, read into one normal form: a list of messages.

Pure: a row is a mapping of columns to values, an error is a sentence without a place; whoever reads the
file adds the place. Texts are kept as they are; whether roles may follow each other is the chat
template's business.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from sft_trainer.data import tool_calls

ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "function_call": "assistant",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
}
COLUMNS: dict[str, tuple[str, ...]] = {  # ours; the first ones are required
    "Messages": ("messages", "tools"),
    "ShareGPT": ("conversations", "system", "tools"),
    "Alpaca": ("instruction", "output", "input", "system", "history"),
    "PromptCompletion": ("prompt", "completion", "system"),
    "PromptChosen": ("prompt", "chosen", "system"),
}
_REQUIRED = {"Messages": 1, "ShareGPT": 1, "Alpaca": 2, "PromptCompletion": 2, "PromptChosen": 2}
_TOOL_KEYS = ("tool_calls", "tool_call_id", "name")
_SHOWN = 400  # characters of a message, which may quote a row
_WEIGHTS = (0.001, 100)  # of an answer that is learned
_DIALOGUE_TURN = re.compile(r"(?:^|\n\n)(Human|Assistant):")

Row = Mapping[str, Any]


class RowError(ValueError):
    """What is wrong with one row; `reason` is the word for the condition."""

    def __init__(self, message: str, reason: str = "InvalidRow") -> None:
        super().__init__(message if len(message) <= _SHOWN else f"{message[:_SHOWN]} ...")
        self.reason = reason


def parse_json(text: str) -> Any:
    """The value of a JSON text; RowError for all that Python's reader may say of a hostile one."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as exc:
        raise RowError(f"not valid JSON ({exc.msg} at column {exc.colno})") from exc
    except RecursionError as exc:
        raise RowError("lists or objects are nested too deeply to be read") from exc
    except ValueError as exc:
        raise RowError("a number has more digits than can be read; write it as text") from exc


class FormatError(ValueError):
    """The columns are those of no known format."""


class Message(NamedTuple):
    """One turn. `weight` is how much each token of an answer counts in the loss; 0: read, not learned."""

    role: str
    content: str
    weight: float = 1.0
    extra: Mapping[str, Any] | None = None  # tool_calls and the like, for templates which know them

    def for_template(self) -> dict[str, Any]:
        """The mapping that chat templates read."""
        return {"role": self.role, "content": self.content, **(self.extra or {})}


class Conversation(NamedTuple):
    """The normal form of a row."""

    messages: tuple[Message, ...]
    tools: tuple[Any, ...] | None = None


def detect(row: Row, columns: Mapping[str, str]) -> str:
    """The format that has the columns of `row`; FormatError names what was found and what would be read."""

    def has(*ours: str) -> bool:
        return all(row.get(columns.get(name, name)) is not None for name in ours)

    for name in ("messages", "conversations"):
        turns = row.get(columns.get(name, name))
        if isinstance(turns, Sequence) and turns and isinstance(turns[0], Mapping):
            return "ShareGPT" if "from" in turns[0] else "Messages"
    if has("messages"):
        return "Messages"
    if has("conversations"):
        return "ShareGPT"
    if has("instruction", "output"):
        return "Alpaca"
    if has("prompt", "completion"):
        return "PromptCompletion"
    if has("prompt", "chosen"):
        return "PromptChosen"
    found = ", ".join(sorted(map(str, row))) or "none"
    raise FormatError(
        f"the format is not recognised by its columns ({found}); expected messages, conversations, "
        "instruction + output, prompt + completion or prompt + chosen; name them in format and columns"
    )


def check_columns(format_name: str, columns: Mapping[str, str]) -> None:
    """FormatError when `columns` maps a name that this format does not read."""
    for ours in columns:
        if ours not in COLUMNS[format_name]:
            known = ", ".join(COLUMNS[format_name])
            raise FormatError(
                f"columns maps {ours!r}, which the format {format_name} does not read (it reads {known})"
            )


def conversation(row: Row, format_name: str, columns: Mapping[str, str]) -> Conversation:
    """`row` in the normal form; RowError says what is missing or of the wrong type."""
    if not _is_mapping(row):
        raise RowError(f"expected an object with columns, found {_kind(row)}")
    values = {ours: row.get(columns.get(ours, ours)) for ours in COLUMNS[format_name]}
    if format_name in ("Messages", "ShareGPT"):
        ours = COLUMNS[format_name][0]  # a file may keep role/content under the other format's name
        other = "conversations" if ours == "messages" else "messages"
        if values[ours] is None and ours not in columns:
            values[ours] = row.get(other)
    for ours in COLUMNS[format_name][: _REQUIRED[format_name]]:
        if values[ours] is None:
            raise RowError(f"column {columns.get(ours, ours)!r} is missing or null (format {format_name})")
    if row.get("functions"):
        raise RowError("the column 'functions' is the old form of 'tools'; write tools")
    messages = _READERS[format_name](values)
    if not messages:
        raise RowError("the conversation is empty")
    tools = _tools(values.get("tools"))
    if tools and format_name == "ShareGPT":
        tools = tool_calls.declared(tools)
    return Conversation(tuple(messages), tools)


def _turns(values: Row) -> list[Message]:
    turns = values.get("messages", values.get("conversations"))
    if isinstance(turns, str):
        turns = _parsed(turns, "the conversation")
    if not isinstance(turns, (list, Sequence)):  # a list is told sooner
        raise RowError(f"expected a list of messages, found {_kind(turns)}")
    messages = [_turn(turn, number) for number, turn in enumerate(turns, start=1)]
    return _with_system(values, messages)


def _turn(turn: Any, number: int) -> Message:
    if not _is_mapping(turn):
        raise RowError(f"message {number}: expected an object with role and content, found {_kind(turn)}")
    theirs = turn.get("role", turn.get("from"))
    role = ROLES.get(str(theirs).lower())
    if role is None:
        known = ", ".join(sorted(set(ROLES.values())))
        raise RowError(f"message {number}: unknown role {theirs!r} (known: {known})")
    if turn.get("function_call"):
        raise RowError(f"message {number}: function_call is the old form of a tool call; write tool_calls")
    extra = {key: turn[key] for key in _TOOL_KEYS if turn.get(key)}
    content = turn.get("content", turn.get("value"))
    if theirs == "function_call" and (calls := tool_calls.written(content)):
        content, extra["tool_calls"] = None, calls
    if "tool_calls" in extra:
        extra["tool_calls"] = tool_calls.with_objects(extra["tool_calls"])
    text = "" if content is None and "tool_calls" in extra else _text(content, f"message {number}")
    if role == "assistant" and not text.strip() and "tool_calls" not in extra:
        raise RowError(f"message {number}: the assistant's answer is empty")
    return Message(role, text, _weight(turn.get("weight"), number), extra or None)


def _weight(value: Any, number: int) -> float:
    """OpenAI's 0 or 1, or how much more or less than others the answer counts; 1 where there is none."""
    if value is None:
        return 1.0
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not (value == 0 or _WEIGHTS[0] <= value <= _WEIGHTS[1]):
        raise RowError(
            f"message {number}: weight is {value!r}; write 0 or a number from {_WEIGHTS[0]} to {_WEIGHTS[1]}"
        )
    return float(value)


def _alpaca(values: Row) -> list[Message]:
    messages: list[Message] = []
    history = values.get("history") or ()
    if not isinstance(history, Sequence):
        raise RowError(f"history: expected a list of pairs, found {_kind(history)}")
    for number, pair in enumerate(history, start=1):
        if not isinstance(pair, Sequence) or isinstance(pair, str) or len(pair) != 2:
            raise RowError(f"history entry {number}: expected a pair of instruction and answer")
        messages += _exchange(pair[0], pair[1], f"history entry {number}")
    question = _text(values["instruction"], "instruction")
    if values.get("input"):
        question = f"{question}\n{_text(values['input'], 'input')}"
    messages += _exchange(question, values["output"], "output")
    return _with_system(values, messages)


def _prompt_completion(values: Row) -> list[Message]:
    prompt = _messages_or_text(values["prompt"], "prompt", "user")
    return _with_system(values, prompt + _messages_or_text(values["completion"], "completion", "assistant"))


def _prompt_chosen(values: Row) -> list[Message]:
    """DeepSpeed-Chat: a prompt written as "Human: … Assistant:" becomes turns; `rejected` is not read."""
    if not isinstance(values["prompt"], str):
        return _prompt_completion({**values, "completion": values["chosen"]})
    answer = _text(values["chosen"], "chosen").strip()
    if not answer:
        raise RowError("chosen is empty")
    turns = _dialogue(values["prompt"]) or [Message("user", values["prompt"].strip())]
    return _with_system(values, [*turns, Message("assistant", answer)])


def _dialogue(prompt: str) -> list[Message]:
    pieces = _DIALOGUE_TURN.split(prompt)
    if len(pieces) < 3 or pieces[0].strip():
        return []
    turns = [
        Message("user" if speaker == "Human" else "assistant", text.strip())
        for speaker, text in zip(pieces[1::2], pieces[2::2], strict=True)
    ]
    if turns[-1] == Message("assistant", ""):
        turns.pop()
    return turns


def _messages_or_text(value: Any, name: str, role: str) -> list[Message]:
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_turn(turn, number) for number, turn in enumerate(value, start=1)]
    text = _text(value, name)
    if role == "assistant" and not text.strip():
        raise RowError(f"{name} is empty")
    return [Message(role, text)]


def _exchange(question: Any, answer: Any, name: str) -> list[Message]:
    reply = _text(answer, name)
    if not reply.strip():
        raise RowError(f"{name} is empty")
    return [Message("user", _text(question, name)), Message("assistant", reply)]


def _with_system(values: Row, messages: list[Message]) -> list[Message]:
    system = values.get("system")
    return [Message("system", _text(system, "system")), *messages] if system else messages


def _text(value: Any, name: str) -> str:
    """A string, or OpenAI's list of text parts joined."""
    if isinstance(value, str):
        return value
    if isinstance(value, Sequence):
        return "".join(_part(part, name) for part in value)
    raise RowError(f"{name}: expected text, found {_kind(value)}")


def _part(part: Any, name: str) -> str:
    if isinstance(part, str):
        return part
    if isinstance(part, Mapping) and part.get("type", "text") == "text" and isinstance(part.get("text"), str):
        return str(part["text"])
    kind = part.get("type") if isinstance(part, Mapping) else _kind(part)
    raise RowError(f"{name}: only text parts can be trained on, found {kind!r}")


def _tools(value: Any) -> tuple[Any, ...] | None:
    if not value:
        return None
    tools = _parsed(value, "tools") if isinstance(value, str) else value
    if not isinstance(tools, Sequence) or isinstance(tools, str):
        raise RowError(f"tools: expected a list, found {_kind(tools)}")
    return tuple(tools) or None


def _parsed(text: str, name: str) -> Any:
    try:
        return parse_json(text)
    except RowError as exc:
        raise RowError(f"{name}: {exc}") from exc


def _is_mapping(value: Any) -> bool:
    return isinstance(value, dict) or isinstance(value, Mapping)  # noqa: SIM101 - the second one takes long


def _kind(value: Any) -> str:
    names = {type(None): "null", str: "text", list: "a list", dict: "an object", bool: "a boolean"}
    return names.get(type(value), "a number" if isinstance(value, int | float) else type(value).__name__)


_READERS: dict[str, Callable[[Row], list[Message]]] = {
    "Messages": _turns,
    "ShareGPT": _turns,
    "Alpaca": _alpaca,
    "PromptCompletion": _prompt_completion,
    "PromptChosen": _prompt_chosen,
}
