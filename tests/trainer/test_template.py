"""Rendering as transformers renders, in a sandbox, without it."""

from __future__ import annotations

from pathlib import Path

import pytest

import chat_templates as T
import tiny
from sft_trainer.config import ChatTemplate as TemplateSource
from sft_trainer.data.template import ChatTemplate, Span, TemplateError
from sft_trainer.data.tokenizer import CHATML, Tokenizer, chat_template, preset
from sft_trainer.errors import UserError

MESSAGES = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]


def test_block_lines_leave_no_white_space_behind() -> None:
    source = "{% for m in messages %}\n    {{ m.content }}\n    {% endfor %}\n."
    assert ChatTemplate(source).render(MESSAGES).text == "    a\n    b\n."


def test_generation_blocks_are_reported_and_leave_no_mark() -> None:
    text, spans = T.compiled(T.TAGGED).render(MESSAGES)
    assert text == "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n"
    assert spans == (Span(text.index("b"), text.index("b") + 1),)


def test_helpers_of_transformers_are_there() -> None:
    source = (
        "{{ {'ü': '<b>'} | tojson }}{{ strftime_now('%%') }}{% for m in messages %}{% break %}{% endfor %}"
    )
    assert ChatTemplate(source).render(MESSAGES).text == '{"ü": "<b>"}%'


def test_arguments_of_tojson_are_in_transformers_order() -> None:
    source = "{{ {'ü': [1], 'a': 2} | tojson(True, none, (',', ':'), True) }}{{ [1] | tojson(indent=1) }}"
    assert ChatTemplate(source).render(MESSAGES).text == '{"a":2,"\\u00fc":[1]}[\n 1\n]'


@pytest.mark.parametrize(
    "source",
    [
        "{{ raise_exception('no') }}",
        "{{ messages[9].content + 'x' }}",
        "{{ messages.append(1) }}",
        "{{ ''.__class__.__mro__ }}",
        "{{ 1 / 0 }}",
        "{{ 10.0 ** 400 }}",
        "{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}",
    ],
    ids=["refusal", "missing", "mutation", "escape", "division", "overflow", "recursion"],
)
def test_a_template_that_fails_or_oversteps_is_an_error(source: str) -> None:
    with pytest.raises(TemplateError):
        ChatTemplate(source).render(MESSAGES)


def test_invalid_jinja_is_named_with_its_line() -> None:
    with pytest.raises(TemplateError, match=r"line 2: .*endfor"):
        ChatTemplate("\n{% endfor %}")


def test_the_jobs_template_goes_before_the_models(tmp_path: Path) -> None:
    tokenizer = Tokenizer(tiny.model(tmp_path / "tiny"))
    (tmp_path / "mine.jinja").write_text("mine")

    def source(chosen: TemplateSource | None) -> str:
        return chat_template(tmp_path / "tiny", tokenizer, chosen, tmp_path).source

    assert source(None) == tiny.CHATML
    assert source(TemplateSource(path="mine.jinja")) == "mine"
    assert source(TemplateSource(preset="ChatML")) == CHATML
    (tmp_path / "tiny" / "chat_template.jinja").write_text("file")
    assert source(None) == "file"


@pytest.mark.parametrize(
    ("chosen", "reason", "words"),
    [
        (None, "NoChatTemplate", "preset: ChatML"),
        (TemplateSource(path="nowhere.jinja"), "ChatTemplateNotFound", "nowhere.jinja was not found"),
        (TemplateSource(path="../x.jinja"), "ChatTemplateNotFound", "leaves the workspace"),
        (TemplateSource(path="broken.jinja"), "InvalidChatTemplate", "line 1"),
    ],
    ids=["none", "missing", "outside", "broken"],
)
def test_a_template_that_cannot_be_used_is_a_users_error(
    tmp_path: Path, chosen: TemplateSource | None, reason: str, words: str
) -> None:
    model = tiny.model(tmp_path / "tiny")
    (model / "tokenizer_config.json").write_text('{"eos_token": "<|im_end|>"}')
    (tmp_path / "broken.jinja").write_text("{% if %}")
    with pytest.raises(UserError, match=words) as caught:
        chat_template(model, Tokenizer(model), chosen, tmp_path)
    assert caught.value.reason == reason


def test_chatml_ends_turns_with_a_token_that_the_model_has(tmp_path: Path) -> None:
    model = tiny.model(tmp_path / "tiny")
    tokenizer = Tokenizer(model)
    assert preset(tokenizer) == CHATML
    content = (model / "tokenizer.json").read_text().replace("<|im_end|>", "</s>")
    (model / "tokenizer.json").write_text(content)
    (model / "tokenizer_config.json").write_text('{"eos_token": {"content": "</s>"}}')
    other = Tokenizer(model)
    assert ChatTemplate(preset(other), other.special_tokens).render(MESSAGES).text == (
        "<|im_start|>user\na</s>\n<|im_start|>assistant\nb</s>\n"
    )
