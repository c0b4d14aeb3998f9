"""Rows of every format, and what is said about rows that are none."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from sft_trainer.data.formats import COLUMNS, FormatError, RowError, check_columns, conversation, detect

QUESTION, ANSWER = ("user", "What is new?"), ("assistant", "Nothing.")
TURNS = [{"role": role, "content": text} for role, text in (QUESTION, ANSWER)]
SHARED = [{"from": "human", "value": QUESTION[1]}, {"from": "gpt", "value": ANSWER[1]}]


def turns(row: Any, format_name: str = "", columns: dict[str, str] | None = None) -> list[tuple[str, str]]:
    name = format_name or detect(row, columns or {})
    return [(m.role, m.content) for m in conversation(row, name, columns or {}).messages]


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("Messages", {"messages": TURNS}),
        ("Messages", {"conversations": TURNS}),
        ("ShareGPT", {"conversations": SHARED}),
        ("ShareGPT", {"messages": SHARED}),
        ("Alpaca", {"instruction": QUESTION[1], "input": "", "output": ANSWER[1]}),
        ("PromptCompletion", {"prompt": QUESTION[1], "completion": ANSWER[1]}),
        ("PromptCompletion", {"prompt": TURNS[:1], "completion": TURNS[1:]}),
        ("PromptChosen", {"prompt": QUESTION[1], "chosen": ANSWER[1], "rejected": "Everything."}),
        ("PromptChosen", {"prompt": f"\n\nHuman: {QUESTION[1]}\n\nAssistant:", "chosen": f" {ANSWER[1]}"}),
    ],
)
def test_a_row_is_recognised_by_its_columns_and_read(name: str, row: Any) -> None:
    assert detect(row, {}) == name
    assert turns(row) == [QUESTION, ANSWER]


def test_columns_may_have_other_names_in_the_file() -> None:
    row = {"dialogue": TURNS, "messages": None}
    assert detect(row, {"messages": "dialogue"}) == "Messages"
    assert turns(row, columns={"messages": "dialogue"}) == [QUESTION, ANSWER]
    assert turns({"q": "a", "a": "b"}, "PromptCompletion", {"prompt": "q", "completion": "a"})[1] == (
        "assistant",
        "b",
    )


def test_a_mapped_column_is_not_silently_replaced_by_another() -> None:
    with pytest.raises(RowError, match="column 'dialogue' is missing"):
        turns({"conversations": TURNS}, "Messages", {"messages": "dialogue"})


def test_a_column_name_that_the_format_does_not_read_is_refused() -> None:
    with pytest.raises(FormatError, match=r"maps 'mesages'.*reads messages, tools"):
        check_columns("Messages", {"mesages": "x"})


def test_unknown_columns_are_named_in_the_error() -> None:
    with pytest.raises(FormatError, match=r"\(text, title\)"):
        detect({"title": "a", "text": "b"}, {})


def test_alpaca_joins_instruction_and_input_and_reads_history_and_system() -> None:
    row = {
        "instruction": "Translate.",
        "input": "Hallo",
        "output": "Hello",
        "system": "Be brief.",
        "history": [["hi", "hello"]],
    }
    assert turns(row) == [
        ("system", "Be brief."),
        ("user", "hi"),
        ("assistant", "hello"),
        ("user", "Translate.\nHallo"),
        ("assistant", "Hello"),
    ]


def test_sharegpt_knows_system_and_tool_turns() -> None:
    row = {
        "system": "Use tools.",
        "conversations": [
            {"from": "human", "value": "rate?"},
            {"from": "function_call", "value": "{}"},
            {"from": "observation", "value": "1.1"},
            {"from": "gpt", "value": "It is 1.1."},
        ],
    }
    assert [role for role, _ in turns(row)] == ["system", "user", "assistant", "tool", "assistant"]


def test_a_deepspeed_chat_prompt_becomes_its_turns() -> None:
    row = {"prompt": "\n\nHuman: a\n\nmore\n\nAssistant: b\n\nHuman: c\n\nAssistant:", "chosen": " d"}
    assert turns(row) == [("user", "a\n\nmore"), ("assistant", "b"), ("user", "c"), ("assistant", "d")]


def test_text_parts_are_joined_and_other_parts_refused() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert turns({"messages": [{"role": "user", "content": parts}, TURNS[1]]})[0] == ("user", "ab")
    picture = [{"type": "image_url", "image_url": "x"}]
    with pytest.raises(RowError, match=r"message 1: only text parts.*'image_url'"):
        turns({"messages": [{"role": "user", "content": picture}, TURNS[1]]})


def test_tool_calls_and_tools_are_kept_for_the_template() -> None:
    call = [{"id": "a", "function": {"name": "rate", "arguments": {"of": "€"}}}]
    written = [{"id": "a", "function": {"name": "rate", "arguments": '{"of": "€"}'}}]
    row = {
        "messages": [{"role": "assistant", "content": None, "tool_calls": written}],
        "tools": '[{"name": "rate"}]',
    }
    read = conversation(row, "Messages", {})
    assert read.messages[0].for_template() == {"role": "assistant", "content": "", "tool_calls": call}
    assert read.tools == ({"name": "rate"},)


def test_a_function_call_in_sharegpt_becomes_a_tool_call_where_it_is_one() -> None:
    one, other = {"name": "rate", "arguments": {"of": "€"}}, {"name": "now", "arguments": {}}
    values = [json.dumps(one), json.dumps([one, other]), '{"name": "rate"}', "rate(€)", "[]"]
    row = {
        "conversations": [{"from": "human", "value": "?"}]
        + [{"from": "function_call", "value": value} for value in values],
        "tools": json.dumps([{"name": "rate", "parameters": {}}]),
    }
    read = conversation(row, "ShareGPT", {})
    calls = [
        [{"type": "function", "function": one}],
        [{"type": "function", "function": f} for f in (one, other)],
    ]
    assert [(m.content, m.extra) for m in read.messages[1:]] == [
        ("", {"tool_calls": calls[0]}),
        ("", {"tool_calls": calls[1]}),
        *((value, None) for value in values[2:]),
    ]
    assert read.tools == ({"type": "function", "function": {"name": "rate", "parameters": {}}},)


def test_an_answer_may_count_more_or_less_or_not_at_all() -> None:
    row = {"messages": [*TURNS, TURNS[0], {**TURNS[1], "weight": 0}, {**TURNS[1], "weight": 2.5}]}
    assert [m.weight for m in conversation(row, "Messages", {}).messages] == [1, 1, 1, 0, 2.5]


@pytest.mark.parametrize("weight", [-1, 101, 1e-9, float("nan"), "1", True, [1]], ids=str)
def test_a_weight_that_is_none_is_refused(weight: Any) -> None:
    with pytest.raises(RowError, match=r"message 2: weight is .*; write 0 or a number from 0\.001 to 100"):
        conversation({"messages": [TURNS[0], {**TURNS[1], "weight": weight}]}, "Messages", {})


@pytest.mark.parametrize(
    ("format_name", "row", "words"),
    [
        ("Messages", ["no", "object"], "expected an object with columns, found a list"),
        ("Messages", {"text": "x"}, "column 'messages' is missing or null"),
        ("Messages", {"messages": []}, "the conversation is empty"),
        ("Messages", {"messages": 3}, "expected a list of messages, found a number"),
        ("Messages", {"messages": "oops"}, "the conversation: not valid JSON ("),
        ("Messages", {"messages": ["hi"]}, "message 1: expected an object with role and content, found text"),
        ("Messages", {"messages": [{"role": "boss", "content": "x"}]}, "message 1: unknown role 'boss'"),
        (
            "Messages",
            {"messages": [{"role": "user", "content": None}]},
            "message 1: expected text, found null",
        ),
        (
            "Messages",
            {"messages": [TURNS[0], {"role": "assistant", "content": " "}]},
            "message 2: the assistant's",
        ),
        (
            "Messages",
            {"messages": [{"role": "assistant", "content": "x", "function_call": {"name": "f"}}]},
            "message 1: function_call is the old form",
        ),
        ("Messages", {"messages": TURNS, "functions": [{"name": "f"}]}, "'functions' is the old form"),
        ("Messages", {"messages": TURNS, "tools": '"rate"'}, "tools: expected a list, found text"),
        ("Alpaca", {"instruction": "x", "output": ""}, "output is empty"),
        ("Alpaca", {"instruction": "x", "output": "y", "history": ["z"]}, "history entry 1: expected a pair"),
        ("PromptCompletion", {"prompt": "x", "completion": 7}, "completion: expected text, found a number"),
        ("PromptChosen", {"prompt": "x", "chosen": "  "}, "chosen is empty"),
    ],
)
def test_a_wrong_row_is_explained(format_name: str, row: Any, words: str) -> None:
    with pytest.raises(RowError) as caught:
        conversation(row, format_name, {})
    assert words in str(caught.value)
    assert caught.value.reason == "InvalidRow"


def test_the_examples_in_the_documentation_are_of_the_format_they_stand_under() -> None:
    text = (Path(__file__).parents[2] / "docs" / "data.md").read_text()
    examples = re.findall(r"^\*\*(\w+)\*\*.*\n```json\n(.*)\n```", text, re.MULTILINE)
    assert [name for name, _ in examples] == list(COLUMNS)
    for name, example in examples:
        row = json.loads(example)
        assert detect(row, {}) == name
        assert turns(row)[-1][0] == "assistant"
