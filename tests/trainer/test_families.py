"""The templates of the field as their models have them, token by token against transformers and a search by regex."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import assets
from sft_trainer.data.formats import RowError, conversation
from sft_trainer.data.shapes import shape
from sft_trainer.data.supervision import supervise
from sft_trainer.data.template import ChatTemplate
from sft_trainer.data.tokenise import tokenise
from sft_trainer.data.tokenizer import CHATML, Tokenizer
from token_rows import apart

pytestmark = pytest.mark.model


class Family(NamedTuple):
    """What a model of it reads before an answer and has to write behind one, and its special tokens."""

    prompt: str
    end: str
    special: dict[str, str]
    added: tuple[str, ...]
    system: bool = True
    tools: bool = False
    skipped: str = ""
    """What may stand behind the prompt without being learned, as a regular expression."""


CHAT = ("<|im_start|>", "<|endoftext|>")
FAMILIES = {
    "Llama 3.1": Family(
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
        "<|eot_id|>",
        {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"},
        ("<|start_header_id|>", "<|end_header_id|>", "<|eom_id|>", "<|python_tag|>"),
        tools=True,
    ),
    "Qwen 2.5": Family(
        "<|im_start|>assistant\n", "<|im_end|>", {"eos_token": "<|im_end|>"}, CHAT, tools=True
    ),
    "Qwen 3": Family("<|im_start|>assistant\n", "<|im_end|>", {"eos_token": "<|im_end|>"}, CHAT, tools=True),
    "Mistral Nemo": Family(
        "[/INST]",
        "</s>",
        {"bos_token": "<s>", "eos_token": "</s>"},
        ("[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_CALLS]", "[TOOL_RESULTS]"),
        system=False,  # said before a question that nobody has answered yet, never in a row that is learned
        tools=True,
    ),
    "Gemma 2": Family(
        "<start_of_turn>model\n",
        "<end_of_turn>",
        {"bos_token": "<bos>", "eos_token": "<eos>"},
        ("<start_of_turn>", "<end_of_turn>"),
        system=False,
    ),
    "Phi 3.5": Family(
        "<|assistant|>\n",
        "<|end|>",
        {"bos_token": "<s>", "eos_token": "<|endoftext|>"},
        ("<|end|>", "<|user|>", "<|assistant|>", "<|system|>"),
    ),
    "ChatML": Family("<|im_start|>assistant\n", "<|im_end|>", {"eos_token": "<|im_end|>"}, CHAT),
    "Mistral Small 3.2": Family(
        "[/INST]",
        "</s>",
        {"bos_token": "<s>", "eos_token": "</s>"},
        ("[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[TOOL_CALLS]", "[CALL_ID]", "[ARGS]"),
        tools=True,
    ),
    "DeepSeek R1": Family(
        "<｜Assistant｜>",
        "<｜end▁of▁sentence｜>",
        {"bos_token": "<｜begin▁of▁sentence｜>", "eos_token": "<｜end▁of▁sentence｜>"},
        ("<｜User｜>", "<｜Assistant｜>"),
        skipped="\n*",  # left of thoughts which the template takes away
    ),
    "Granite 3.3": Family(
        "<|start_of_role|>assistant<|end_of_role|>",
        "<|end_of_text|>",
        {"bos_token": "<|end_of_text|>", "eos_token": "<|end_of_text|>"},
        ("<|start_of_role|>", "<|end_of_role|>", "<|tool_call|>"),
    ),
    "Command R7B": Family(
        "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>",
        "<|END_RESPONSE|><|END_OF_TURN_TOKEN|>",
        {"bos_token": "<BOS_TOKEN>", "eos_token": "<|END_OF_TURN_TOKEN|>"},
        ("<|START_OF_TURN_TOKEN|>", "<|CHATBOT_TOKEN|>", "<|START_RESPONSE|>", "<|END_RESPONSE|>"),
    ),
    "Kimi K2": Family(
        "<|im_assistant|>assistant<|im_middle|>",
        "<|im_end|>",
        {"bos_token": "[BOS]", "eos_token": "<|im_end|>"},
        ("<|im_user|>", "<|im_assistant|>", "<|im_system|>", "<|im_middle|>"),
        tools=True,
    ),
    "QwQ": Family(
        "<|im_start|>assistant\n",
        "<|im_end|>",
        {"eos_token": "<|im_end|>"},
        CHAT,
        skipped="(?:<think>\n)?",  # the prompt itself begins the thoughts
    ),
}
FAMILIES |= dict.fromkeys(("Llama 3.2", "Llama 3.3"), FAMILIES["Llama 3.1"])

SYSTEM = {"role": "system", "content": "Be brief.\nBe kind."}
TURNS = [
    {"role": "user", "content": "Where is my parcel?"},
    {"role": "assistant", "content": "On its way.\n\nIt comes tomorrow."},
    {"role": "user", "content": "你是谁？"},
    {"role": "assistant", "content": "小助手。 🙂"},
    {"role": "user", "content": "def f(x):\n    return x"},
    {"role": "assistant", "content": "```python\nf(1)  # 1\n```"},
]
RATE = {
    "name": "rate",
    "description": "An exchange rate.",
    "parameters": {"type": "object", "properties": {}},
}
TOOLS = [{"type": "function", "function": RATE}]
CALL = {"id": "abcdef123", "type": "function", "function": {"name": "rate", "arguments": {"of": "€", "n": 1}}}
TOOL_TURNS = [
    {"role": "user", "content": "What is the rate?"},
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "content": '{"rate": 1.1}', "tool_call_id": "abcdef123", "name": "rate"},
    {"role": "assistant", "content": "It is 1.1."},
]
TALKS: dict[str, tuple[list[dict[str, Any]], list[Any] | None]] = {
    "one-turn": (TURNS[:2], None),
    "three-turns": (TURNS, None),
    "system": ([SYSTEM, *TURNS[:4]], None),
    "blanks": (
        [{"role": "user", "content": " a \n"}, {"role": "assistant", "content": " b \n"}, *TURNS],
        None,
    ),
    "thoughts": ([TURNS[0], {"role": "assistant", "content": "<think>\nhm\n</think>\n\nYes."}], None),
    "tools": (TOOL_TURNS, TOOLS),
    "system-and-tools": ([SYSTEM, *TURNS[:2], *TOOL_TURNS], TOOLS),
}


class Made(NamedTuple):
    """Ours and theirs of one family."""

    template: ChatTemplate
    tokenizer: Tokenizer
    theirs: Any


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Made]:
    """A real tokenizer with the special tokens of each family, and the family's template."""
    from tokenizers import Tokenizer as Fast
    from transformers import PreTrainedTokenizerFast

    sources = {name: path.read_text() for name, path in assets.chat_templates().items()} | {"ChatML": CHATML}
    found = {}
    for name, family in FAMILIES.items():
        folder = tmp_path_factory.mktemp("family")
        fast = Fast.from_file(str(assets.model_folder() / "tokenizer.json"))
        fast.add_special_tokens([*family.special.values(), *family.added])
        fast.save(str(folder / "tokenizer.json"))
        (folder / "tokenizer_config.json").write_text(json.dumps(family.special))
        tokenizer = Tokenizer(folder)
        theirs = PreTrainedTokenizerFast(tokenizer_object=fast, chat_template=sources[name], **family.special)
        template = ChatTemplate(sources[name], tokenizer.special_tokens, tokenizer.added_tokens)
        found[name] = Made(template, tokenizer, theirs)
    return found


def expected(text: str, family: Family, theirs: Any) -> tuple[list[int], list[bool]]:
    """Tokens, and which begin in what a model writes: all between a prompt and the next end, the end included."""
    prompt = "|".join(re.escape(one) for one in (family.prompt, "[/TOOL_RESULTS]"))
    answer = f"(?:{prompt}){family.skipped}(.*?{re.escape(family.end)})"
    answers = [match.span(1) for match in re.finditer(answer, text, re.DOTALL)]
    encoded = theirs(text, add_special_tokens=False, return_offsets_mapping=True)
    mask = [any(a <= start < b for a, b in answers) for start, _ in encoded["offset_mapping"]]
    return encoded["input_ids"], mask


@pytest.mark.parametrize("talk", TALKS)
@pytest.mark.parametrize("name", FAMILIES)
def test_text_tokens_and_mask_are_those_of_transformers(name: str, talk: str, made: dict[str, Made]) -> None:
    family, (template, tokenizer, theirs), (messages, tools) = FAMILIES[name], made[name], TALKS[talk]
    read = conversation({"messages": messages, "tools": tools}, "Messages", {})
    if (tools and not family.tools) or (messages[0] is SYSTEM and not family.system):
        with pytest.raises(RowError):
            supervise(read, template, "Assistant")
        return
    ours = supervise(read, template, "Assistant")
    assert ours.text == theirs.apply_chat_template(messages, tools=tools, tokenize=False)
    (row,) = apart(tokenise([ours], tokenizer))
    mask = [False] * len(row.ids)
    for start, end in row.spans:
        mask[start:end] = [True] * (end - start)
    ids, supervised = expected(ours.text, family, theirs)
    assert row.ids == ids
    assert mask == supervised
    assert len(row.spans) == sum(message["role"] == "assistant" for message in messages)


@pytest.mark.parametrize("name", ["Llama 3.1", "Qwen 2.5", "Mistral Nemo", "Gemma 2", "ChatML"])
def test_most_are_rendered_once_per_sequence_of_roles(name: str, made: dict[str, Made]) -> None:
    assert shape(made[name].template, ("user", "assistant", "user", "assistant")) is not None


@pytest.mark.parametrize("name", ["Qwen 2.5", "Llama 3.1"])
def test_a_real_data_set_with_tools_is_rendered_with_them(name: str, made: dict[str, Made]) -> None:
    rows = json.loads(Path(assets.tool_calls_json()).read_text())
    template = made[name].template
    calls = 0
    for row in rows:
        read = conversation(row, "ShareGPT", {})
        made_of = supervise(read, template, "Assistant")
        answers = [made_of.text[start:end] for start, end in made_of.spans]
        assert len(answers) == sum(turn["from"] in ("gpt", "function_call") for turn in row["conversations"])
        assert all(answer.endswith(FAMILIES[name].end) for answer in answers)
        called = [turn["value"] for turn in row["conversations"] if turn["from"] == "function_call"]
        calls += len(called)
        for value in called:
            assert any(
                json.loads(value)["name"] in answer and answer.lstrip()[0] in "<{" for answer in answers
            )
    assert calls > 200


def test_a_data_set_with_tools_is_refused_where_the_template_has_none(made: dict[str, Made]) -> None:
    rows = json.loads(Path(assets.tool_calls_json()).read_text())
    row = next(row for row in rows if "function_call" in json.dumps(row))
    with pytest.raises(RowError, match=r"no place for `tools`; set model\.chatTemplate"):
        supervise(conversation(row, "ShareGPT", {}), made["ChatML"].template, "Assistant")
