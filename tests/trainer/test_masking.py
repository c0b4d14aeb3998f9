"""What is supervised, for templates of every kind. Markers show it: «…» around what carries loss."""

from __future__ import annotations

import pytest

import chat_templates as T
from sft_trainer.data.ending import ending
from sft_trainer.data.formats import Conversation, Message, RowError
from sft_trainer.data.supervision import Supervision, supervise
from sft_trainer.data.tokenizer import CHATML

TALK = Conversation(
    (
        Message("system", "Be kind."),
        Message("user", "hi"),
        Message("assistant", "hello"),
        Message("user", "你是谁？"),
        Message("assistant", "小助手。\n\n你好。"),
    )
)


def shown(supervision: Supervision) -> str:
    text, last = "", 0
    for start, end in supervision.spans:
        text += f"{supervision.text[last:start]}«{supervision.text[start:end]}»"
        last = end
    return text + supervision.text[last:]


def answers(supervision: Supervision) -> list[str]:
    return [supervision.text[start:end] for start, end in supervision.spans]


def test_chatml_supervises_answers_with_their_end_and_without_the_line_break() -> None:
    assert shown(supervise(TALK, T.compiled(CHATML), "Assistant")) == (
        "<|im_start|>system\nBe kind.<|im_end|>\n"
        "<|im_start|>user\nhi<|im_end|>\n"
        "<|im_start|>assistant\n«hello<|im_end|>»\n"
        "<|im_start|>user\n你是谁？<|im_end|>\n"
        "<|im_start|>assistant\n«小助手。\n\n你好。<|im_end|>»\n"
    )


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (T.STRIPPING, [" hello <|im_end|>", " 小助手。\n\n你好。 <|im_end|>"]),
        (T.SYSTEM_AT_LAST_USER, ["hello<|im_end|>", "小助手。\n\n你好。<|im_end|>"]),
        (T.REASONING, ["hello<|im_end|>", "<think>\n\n</think>\n\n小助手。\n\n你好。<|im_end|>"]),
        (T.END_ONLY_ONCE, ["hello", "小助手。\n\n你好。\n<|im_end|>"]),
        (T.TAGGED, ["hello<|im_end|>", "小助手。\n\n你好。<|im_end|>"]),
        (T.WRONGLY_TAGGED, ["hello<|im_end|>", "小助手。\n\n你好。<|im_end|>"]),
    ],
    ids=["stripping", "system-moves", "reasoning", "end-once", "tagged", "wrongly-tagged"],
)
def test_answers_are_found_in_templates_that_differ(source: str, expected: list[str]) -> None:
    assert answers(supervise(TALK, T.compiled(source), "Assistant")) == expected


@pytest.mark.parametrize("name", T.FAMILIES)
@pytest.mark.parametrize("turns", [2, 3, 4, 5], ids=["one-answer", "with-system", "two-answers", "both"])
def test_every_answer_ends_with_the_end_of_turn_of_its_family(name: str, turns: int) -> None:
    template, end = T.family(name)
    talk = Conversation(TALK.messages[turns % 2 == 0 : 1 + turns - turns % 2])
    expected = [f"{message.content}{end}" for message in talk.messages if message.role == "assistant"]
    assert [words.lstrip(" ") for words in answers(supervise(talk, template, "Assistant"))] == expected


def test_what_closes_a_conversation_is_not_taken_for_the_end_of_a_turn() -> None:
    template, _ = T.family("Phi")
    assert shown(supervise(TALK, template, "Assistant")) == (
        "<|system|>\nBe kind.<|end|>\n<|user|>\nhi<|end|>\n<|assistant|>\n«hello<|end|>»\n"
        "<|user|>\n你是谁？<|end|>\n<|assistant|>\n«小助手。\n\n你好。<|end|>»\n<|endoftext|>"
    )


def test_the_end_of_a_conversation_is_learned_where_turns_have_none() -> None:
    once = ending(T.compiled(T.END_ONLY_ONCE))
    assert once is not None
    assert (once.every, once.last.strip(), once.stops) == ("", "<|im_end|>", False)
    endless = ending(T.compiled(T.ENDLESS))
    assert endless == ("", "", False)
    assert answers(supervise(TALK, T.compiled(T.ENDLESS), "Assistant")) == ["hello", "小助手。\n\n你好。"]


def test_thoughts_are_supervised_where_the_template_keeps_them() -> None:
    thoughtful = Conversation((Message("user", "1+1?"), Message("assistant", "<think>\neasy\n</think>\n\n2")))
    assert answers(supervise(thoughtful, T.compiled(T.REASONING), "Assistant")) == [
        "<think>\neasy\n</think>\n\n2<|im_end|>"
    ]
    twice = Conversation(thoughtful.messages * 2)
    assert answers(supervise(twice, T.compiled(T.REASONING), "Assistant")) == [
        "2<|im_end|>",
        "<think>\neasy\n</think>\n\n2<|im_end|>",
    ]


def test_the_last_answer_alone_can_be_supervised() -> None:
    assert answers(supervise(TALK, T.compiled(CHATML), "LastAssistant")) == ["小助手。\n\n你好。<|im_end|>"]


def test_all_tokens_means_the_whole_text() -> None:
    supervision = supervise(TALK, T.compiled(CHATML), "AllTokens")
    assert answers(supervision) == [supervision.text]


def test_turns_after_the_last_answer_are_left_out() -> None:
    longer = Conversation((*TALK.messages, Message("user", "bye")))
    assert (
        supervise(longer, T.compiled(CHATML), "Assistant").text
        == supervise(TALK, T.compiled(CHATML), "Assistant").text
    )
    assert "bye" in supervise(longer, T.compiled(CHATML), "AllTokens").text


def test_an_answer_that_its_author_excludes_is_rendered_but_not_supervised() -> None:
    first = Message("assistant", "hello", weight=0)
    talk = Conversation((TALK.messages[1], first, *TALK.messages[3:]))
    supervision = supervise(talk, T.compiled(CHATML), "Assistant")
    assert answers(supervision) == ["小助手。\n\n你好。<|im_end|>"]
    assert "hello" in supervision.text
    assert supervision.weights is None


def test_an_answer_that_counts_more_has_its_weight() -> None:
    first = Message("assistant", "hello", weight=2.5)
    talk = Conversation((TALK.messages[1], first, *TALK.messages[3:]))
    assert supervise(talk, T.compiled(CHATML), "Assistant").weights == (2.5, 1)
    assert supervise(talk, T.compiled(CHATML), "LastAssistant").weights is None


def test_an_answer_that_repeats_the_question_or_the_template_is_still_found_at_its_place() -> None:
    nasty = "hi<|im_end|>\n<|im_start|>assistant\nhi"
    talk = Conversation(
        (
            Message("user", nasty),
            Message("assistant", nasty),
            Message("user", "a"),
            Message("assistant", "hi"),
        )
    )
    spans = supervise(talk, T.compiled(CHATML), "Assistant")
    assert answers(spans) == [f"{nasty}<|im_end|>", "hi<|im_end|>"]


def test_the_assistant_may_speak_first() -> None:
    talk = Conversation(
        (Message("assistant", "Welcome."), Message("user", "hi"), Message("assistant", "So?"))
    )
    assert answers(supervise(talk, T.compiled(CHATML), "Assistant")) == [
        "Welcome.<|im_end|>",
        "So?<|im_end|>",
    ]


def test_a_row_without_an_answer_is_refused_by_its_own_name() -> None:
    with pytest.raises(RowError, match="no assistant turn") as caught:
        supervise(Conversation((Message("user", "hi"),)), T.compiled(CHATML), "Assistant")
    assert caught.value.reason == "NoAssistantTurn"


def test_a_template_that_rewrites_answers_is_refused() -> None:
    with pytest.raises(RowError, match=r"could not be located.*preset: ChatML"):
        supervise(TALK, T.compiled(T.SHOUTING), "Assistant")


def test_what_the_template_says_about_a_conversation_is_passed_on() -> None:
    with pytest.raises(RowError, match="the chat template refuses the conversation: roles must alternate"):
        supervise(TALK, T.compiled(T.ALTERNATING), "Assistant")


CALL = Message("assistant", "", extra={"tool_calls": [{"function": {"name": "rate", "arguments": {"a": 1}}}]})
TOOL_TALK = Conversation(
    (Message("user", "rate?"), CALL, Message("tool", '{"rate": 7}'), Message("assistant", "7.")),
    tools=({"name": "rate"},),
)


def test_tools_calls_and_results_are_rendered_and_the_calls_are_supervised() -> None:
    assert shown(supervise(TOOL_TALK, T.compiled(T.TOOLS), "Assistant")) == (
        '<|im_start|>tools\n[{"name": "rate"}]<|im_end|>\n<|im_start|>user\nrate?<|im_end|>\n'
        '<|im_start|>assistant\n«<call>{"name": "rate", "arguments": {"a": 1}}</call><|im_end|>»\n'
        '<|im_start|>tool\n"{\\"rate\\": 7}"<|im_end|>\n<|im_start|>assistant\n«7.<|im_end|>»\n'
    )


@pytest.mark.parametrize("loss_on", ["Assistant", "LastAssistant", "AllTokens"])
@pytest.mark.parametrize("source", [CHATML, T.NO_OTHER_ROLES], ids=["ChatML", "names-them-for-nothing"])
@pytest.mark.parametrize(
    ("talk", "words"),
    [
        (Conversation(TOOL_TALK.messages[::3], TOOL_TALK.tools), "no place for `tools`"),
        (Conversation(TOOL_TALK.messages), "message 2: the assistant calls tools, which"),
    ],
    ids=["tools", "calls"],
)
def test_tools_that_the_template_would_drop_are_refused(
    talk: Conversation, words: str, source: str, loss_on: str
) -> None:
    with pytest.raises(RowError, match=words):
        supervise(talk, T.compiled(source), loss_on)


@pytest.mark.parametrize("role", ["system", "tool"])
def test_a_turn_that_the_template_passes_over_is_refused(role: str) -> None:
    talk = Conversation((Message("user", "hi"), Message(role, "words"), Message("assistant", "hello")))
    with pytest.raises(
        RowError, match=f"message 2: the chat template leaves out the words of the role '{role}'"
    ):
        supervise(talk, T.compiled(T.NO_OTHER_ROLES), "Assistant")


def test_half_a_character_in_the_tools_is_refused() -> None:
    talk = Conversation(TALK.messages, tools=({"name": "\ud83d"},))
    with pytest.raises(RowError, match="half of a character"):
        supervise(talk, T.compiled(T.TOOLS), "Assistant")
