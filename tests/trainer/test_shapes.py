"""A conversation rendered from its shape is the one that the template renders, its answers at the same places."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import chat_templates as T
from sft_trainer.data import completeness
from sft_trainer.data.formats import Conversation, Message, RowError
from sft_trainer.data.locating import locate, rendered
from sft_trainer.data.shapes import shape
from sft_trainer.data.supervision import supervise
from sft_trainer.data.template import ChatTemplate, Span, TemplateError
from sft_trainer.data.tokenizer import CHATML

OTHERS = ["STRIPPING", "SYSTEM_AT_LAST_USER", "REASONING", "END_ONLY_ONCE", "TAGGED", "SHOUTING"]
OTHERS += ["WRONGLY_TAGGED", "ENDLESS", "ALTERNATING", "TOOLS", "NO_OTHER_ROLES"]
TEMPLATES = {
    "ChatML": T.compiled(CHATML),
    **{name: T.family(name)[0] for name in T.FAMILIES},
    **{name.lower(): T.compiled(getattr(T, name)) for name in OTHERS},
}
NASTY = [
    "hi",
    " hi ",
    "\n你好\n\n",
    "<think>\nx\n</think>\n\ny",
    "<|im_end|>",
    "<|im_end|>\n",
    "</s>",
    "<|end|>\n",
]
NASTY += ["{{ 1 }}", " ", "", "a" * 50, "\u2028", "[/INST] hi", "assistant", "<|end|>\n<|endoftext|>"]
CONTENTS = st.sampled_from(NASTY)
ROLES = st.lists(st.sampled_from(["system", "user", "assistant", "tool"]), min_size=1, max_size=6)


def row_by_row(talk: Conversation, template: ChatTemplate) -> tuple[str, list[Span]]:
    """Rendered and located without a shape, every step on these very contents."""
    text = rendered(template, talk.messages, talk)
    completeness.check(text, talk.messages, talk, template)
    return text, locate(text, talk.messages, talk, template)


@pytest.mark.parametrize("name", TEMPLATES)
@given(data=st.data())
@settings(deadline=None, max_examples=60)
def test_it_equals_the_rendering_row_by_row(name: str, data: st.DataObject) -> None:
    roles = [*data.draw(ROLES), "assistant"]
    talk = Conversation(tuple(Message(role, data.draw(CONTENTS)) for role in roles))
    try:
        text, spans = row_by_row(talk, TEMPLATES[name])
    except (RowError, TemplateError):
        with pytest.raises(RowError):
            supervise(talk, TEMPLATES[name], "Assistant")
        return
    made = supervise(talk, TEMPLATES[name], "Assistant")
    assert (made.text, list(made.spans)) == (text, spans)


@pytest.mark.parametrize("name", ["ChatML", "Llama", "Gemma", "Mistral", "Qwen", "stripping"])
def test_templates_of_the_field_have_shapes(name: str) -> None:
    assert shape(TEMPLATES[name], ("user", "assistant", "user", "assistant")) is not None


@pytest.mark.parametrize(
    "looks",
    [
        "{% if 'x' in m.content %}!{% endif %}",
        "{% if m.content in 'xyz' %}!{% endif %}",
        "{% if m.content is in 'xyz' %}!{% endif %}",
        "{% if 'xyz'.startswith(m.content) %}!{% endif %}",
        "{% if m.content == 'x' %}!{% endif %}",
        "{% if m.content > 'x' %}!{% endif %}",
        "{% if m.content is sequence and m.content | length > 3 %}!{% endif %}",
        "{{ m.content | length }}",
        "{{ m.content | int }}",
        "{{ m.content | upper }}",
        "{{ m.content | tojson }}",
        "{{ m | tojson(ensure_ascii=true) }}",
        "{{ m.content[0] }}",
        "{{ m.content.split('x')[0] }}",
        "{{ (m.content + ' ') | trim }}",
        "{% set text = m.content ~ '' %}{% if 'x' in text %}!{% endif %}",
        "{% set text %}{{ m.content }}{% endset %}{% if 'x' in text %}!{% endif %}",
        "{% macro say(text) %}{{ text }}{% endmacro %}{% if 'x' in say(m.content) %}!{% endif %}",
        "{{ 'xyz' | replace(m.content, '') }}",
        "{{ '%s' % m.content }}",
        "{{ m.content * 2 }}",
    ],
)
def test_a_template_that_looks_at_contents_has_none(looks: str) -> None:
    source = CHATML.replace("{% endfor %}", "{% endfor %}{% for m in messages %}" + looks + "{% endfor %}")
    assert shape(T.compiled(CHATML), ("user", "assistant")) is not None
    assert shape(T.compiled(source), ("user", "assistant")) is None
