"""Character spans become token spans, whatever the tokenizer does at their edges."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer as Fast
from tokenizers import models, pre_tokenizers

import tiny
from sft_trainer.data.supervision import Supervision
from sft_trainer.data.template import Span
from sft_trainer.data.tokenise import Tokens, tokenise
from sft_trainer.data.tokenizer import Tokenizer


@pytest.fixture
def bytewise(tmp_path: Path) -> Tokenizer:
    return Tokenizer(tiny.model(tmp_path / "m"))


def words(folder: Path, vocabulary: list[str]) -> Tokenizer:
    """A tokenizer that glues the blank before a word to it, as SentencePiece does."""
    fast = Fast(models.WordLevel({word: index for index, word in enumerate(vocabulary)}, unk_token="?"))
    fast.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    folder.mkdir()
    fast.save(str(folder / "tokenizer.json"))
    return Tokenizer(folder)


def supervised(text: str, answer: str, tokenizer: Tokenizer) -> list[int]:
    start = text.index(answer)
    (row,) = tokenise([Supervision(text, [Span(start, start + len(answer))])], tokenizer)
    return [token for start, end in row.spans for token in row.ids[start:end]]


def test_every_byte_of_a_wide_character_is_supervised(bytewise: Tokenizer) -> None:
    assert bytewise.decode(supervised("a你b", "你", bytewise)) == "你"
    assert len(supervised("a你b", "你", bytewise)) == 3


def test_a_blank_glued_to_the_first_word_belongs_to_the_answer(tmp_path: Path) -> None:
    vocabulary = ["?", "ask", "▁yes", "▁no"]
    tokenizer = words(tmp_path / "w", vocabulary)
    assert supervised("ask yes no", "yes no", tokenizer) == [2, 3]
    assert supervised("ask yes no", " yes no", tokenizer) == [2, 3]


def test_a_word_that_begins_before_the_answer_does_not(tmp_path: Path) -> None:
    tokenizer = words(tmp_path / "w", ["?", "ask:yes", "▁no"])
    assert supervised("ask:yes no", "yes no", tokenizer) == [2]


def test_the_first_token_of_a_row_is_never_supervised(bytewise: Tokenizer) -> None:
    assert len(supervised("abc", "abc", bytewise)) == 2


def test_cutting_keeps_spans_within_the_row() -> None:
    row = Tokens(np.arange(10, dtype=np.int32), ((1, 3), (5, 9)))
    assert row.supervised == 6
    assert row.cut(7).ids.tolist() == list(range(7))
    assert row.cut(7).spans == ((1, 3), (5, 7))
    assert row.cut(5).spans == ((1, 3),)
    assert row.cut(0).supervised == 0


def test_a_weight_goes_with_its_span_and_is_lost_with_it(bytewise: Tokenizer) -> None:
    text = "ask yes no"
    supervision = Supervision(text, (Span(0, 1), Span(4, 7), Span(8, 10)), (3.0, 0.5, 2.0))
    (row,) = tokenise([supervision], bytewise)
    assert (row.spans, row.weights) == (((4, 7), (8, 10)), (0.5, 2.0))
    assert row.cut(6).weights == (0.5,)


def test_settings_saved_with_a_tokenizer_do_not_cut_or_pad(tmp_path: Path) -> None:
    folder = tiny.model(tmp_path / "m")
    content = json.loads((folder / "tokenizer.json").read_text())
    content["truncation"] = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
    (folder / "tokenizer.json").write_text(json.dumps(content))
    assert len(Tokenizer(folder).encode(["abcdef"])[0].ids) == 6
