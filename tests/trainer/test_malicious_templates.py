"""Chat templates that would never end or fill the memory: each is ended, with one sentence, and an honest one is not."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import hostile
from chat_templates import QWEN
from preparing import CHAT, Room
from sft_trainer.config import ExitCode
from sft_trainer.data import bounded
from sft_trainer.data.template import ChatTemplate, TemplateError
from sft_trainer.errors import UserError

HOSTILE = {
    "loops-in-loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "macros-that-call-themselves-twice": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "loops-that-go-into-themselves": "{% for x in [[1]] recursive %}{{ loop([x, x]) }}{{ loop([x, x]) }}{% endfor %}",
    "text-doubled": "{% set ns = namespace(x='ab') %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
    "text-doubled-by-tilde": "{% set ns = namespace(x='ab') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
    "text-doubled-in-a-block": "{% set ns = namespace(x='ab') %}{% for i in range(60) %}{% set ns.x %}{{ ns.x }}{{ ns.x }}{% endset %}{% endfor %}",
    "text-doubled-through-a-macro": "{% macro f(n, x) %}{% if n %}{{ f(n - 1, x + x) }}{% endif %}{% endmacro %}{{ f(60, 'ab') }}",
    "list-doubled": "{% set ns = namespace(x=[1]) %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
    "list-of-itself-twice": "{% set ns = namespace(x=[1]) %}{% for i in range(60) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x }}",
    "scope-doubled": "{% macro f(n, x) %}{% with y = x + x %}{% if n %}{{ f(n - 1, y) }}{% endif %}{% endwith %}{% endmacro %}{{ f(60, 'ab') }}",
    "times": "{{ 'ab' * 10 ** 10 }}",
    "times-of-a-list": "{{ ([1] * 999999) | list * 999999 }}",
    "times-from-the-left": "{{ 10 ** 10 * messages[0].content }}",
    "power": "{{ 10 ** (10 ** 8) }}",
    "numbers-squared": "{% set ns = namespace(x=9) %}{% for i in range(60) %}{% set ns.x = ns.x * ns.x %}{% endfor %}",
    "percent": "{{ '%09999999999d' % 1 }}",
    "percent-with-a-star": "{{ '%0*d' % (10 ** 10, 1) }}",
    "format-filter": "{{ '%09999999999d' | format(1) }}",
    "format-method": "{{ '{:9999999999}'.format(1) }}",
    "format-with-a-width": "{{ '{:{}}'.format(1, 9999999999) }}",
    "center": "{{ 'a' | center(9999999999) }}",
    "ljust": "{{ 'a'.ljust(9999999999) }}",
    "zfill": "{{ messages[0].content.zfill(9999999999) }}",
    "indent": "{{ ('a\n' * 99999) | indent(99999) }}",
    "replace-filter": "{{ ('a' * 99999) | replace('a', 'b' * 99999) }}",
    "replace-method": "{{ ('a' * 99999).replace('a', 'b' * 99999) }}",
    "join-filter": "{{ range(99999) | join('b' * 99999) }}",
    "join-method": "{{ ('b' * 99999).join(['a'] * 99999) }}",
    "join-of-a-generator": "{{ range(99999) | map('string') | join('b' * 99999) }}",
    "wordwrap": "{{ ('a ' * 99999) | wordwrap(1, true, 'b' * 99999) }}",
    "tojson": "{{ [[[1]]] | tojson(indent=999999) }}",
    "depths-of-large-texts": "{% macro f(n, x) %}{% set y = x + 'b' %}{{ f(n - 1, y) if n }}{% endmacro %}{{ f(99, 'a' * 30000000) }}",
    "much-written": "{% for i in range(99999) %}{{ 'a' * 99999 }}{% endfor %}",
    "much-written-in-a-macro": "{% macro f() %}{% for i in range(99999) %}{{ 'a' * 99999 }}{% endfor %}{% endmacro %}{{ f() | length }}",
}  # fmt: skip


@pytest.fixture(autouse=True)
def _little_memory() -> Iterator[None]:
    with hostile.little_memory():
        yield


@pytest.mark.parametrize("source", HOSTILE.values(), ids=HOSTILE)
def test_a_template_that_would_never_end_is_ended(source: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(bounded, "STEPS", 100_000)
    with pytest.raises(
        (UserError, TemplateError), match="does not come|makes |reckons|formats|calls|indents|recursion"
    ):
        ChatTemplate(source).render(CHAT["messages"])


def test_what_is_wrong_before_any_row_is_said_of_the_template():
    with pytest.raises(TemplateError, match="calls a function with a number"):
        ChatTemplate("{{ 'a' | center(9999999999) }}")
    with pytest.raises(TemplateError):
        ChatTemplate("{{ " + "(" * 100_000 + "1" + ")" * 100_000 + " }}")


def test_preparation_ends_with_the_template_and_not_with_the_row(tmp_path, monkeypatch: pytest.MonkeyPatch):
    room = Room(tmp_path, monkeypatch)
    room.write("datasets/chats.jsonl", *[CHAT] * 100)
    (room.workspace / "models" / "tiny" / "chat_template.jinja").write_text(HOSTILE["text-doubled"])
    outcome = room.run(onInvalidRow="Skip")
    assert (outcome.exit_code, outcome.reason) == (ExitCode.USER_ERROR, "InvalidChatTemplate")
    assert "set model.chatTemplate" in outcome.message


def test_long_conversations_and_long_answers_stay_within_the_bounds():
    messages = [
        {"role": role, "content": "words " * 50} for _ in range(2000) for role in ("user", "assistant")
    ]
    assert ChatTemplate(QWEN).render(messages).text.count("words") == 50 * 4000
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "words " * 2_000_000}]
    assert len(ChatTemplate(QWEN).render(messages).text) > 12_000_000


def test_a_row_has_as_many_steps_however_many_came_before():
    template = ChatTemplate("{% for m in messages %}{{ m.content }}{% endfor %}")
    template._environment.left = 0
    assert template.render(CHAT["messages"]).text == "hihello"
