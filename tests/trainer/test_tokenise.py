"""Character spans become token spans, whatever the tokenizer does at their edges."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Fast
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

import tiny
import token_rows
from sft_trainer.data.rows import joined
from sft_trainer.data.supervision import Supervision
from sft_trainer.data.template import Span
from sft_trainer.data.tokenise import tokenise
from sft_trainer.data.tokenizer import Tokenizer
from token_rows import Tokens, apart, together


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
    (row,) = apart(tokenise([Supervision(text, (Span(start, start + len(answer)),))], tokenizer))
    return token_rows.supervised(row)


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
    rows = together([Tokens(range(10), ((1, 3), (5, 9)), (0.5, 2.0)), Tokens(range(4), ((1, 4),))])

    def cut(limit: int) -> list[Tokens]:
        return apart(rows.take(np.arange(2), limit))

    assert cut(10) == apart(rows)
    assert cut(7)[0] == Tokens(list(range(7)), ((1, 3), (5, 7)), (0.5, 2.0))
    assert [row.spans for row in cut(5)] == [((1, 3),), ((1, 4),)]
    assert [rows.supervised(limit).tolist() for limit in (10, 7, 2, 1)] == [[6, 3], [4, 3], [1, 1], [0, 0]]


def test_rows_are_taken_in_any_order_and_number() -> None:
    rows = [Tokens([size] * size, ((1, size),) if size % 2 else ()) for size in range(2, 7)]
    taken = together(rows).take(np.array([4, 1, 1, 0]), 4)
    assert [row.ids for row in apart(taken)] == [[6] * 4, [3] * 3, [3] * 3, [2] * 2]
    assert [row.spans for row in apart(taken)] == [(), ((1, 3),), ((1, 3),), ()]
    assert len(together(rows).take(np.array([], int), 4)) == 0
    assert apart(joined([taken, together(rows)])) == [*apart(taken), *apart(together(rows))]


def test_a_weight_goes_with_its_span_and_is_lost_with_it(bytewise: Tokenizer) -> None:
    text = "ask yes no"
    supervision = Supervision(text, (Span(0, 1), Span(4, 7), Span(8, 10)), (3.0, 0.5, 2.0))
    (row,) = apart(tokenise([supervision], bytewise))
    assert (row.spans, row.weights) == (((4, 7), (8, 10)), (0.5, 2.0))


def test_settings_saved_with_a_tokenizer_do_not_cut_or_pad(tmp_path: Path) -> None:
    folder = tiny.model(tmp_path / "m")
    content = json.loads((folder / "tokenizer.json").read_text())
    content["truncation"] = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
    (folder / "tokenizer.json").write_text(json.dumps(content))
    assert len(Tokenizer(folder).encode(["abcdef"])[0].ids) == 6


# ------------------------------------------------------------------ places by the sizes of tokens

END = "<|im_end|>"


def trained(**parts: Any) -> Fast:
    """A small byte-level BPE with merges, as GPT-2, Llama 3 and Qwen have it, and `parts` of it replaced."""
    fast = Fast(models.BPE())
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    text = ["the cat sat on the mat, the dog too\n\n  and 你好你好 é é"] * 9
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    fast.train_from_iterator(
        text, trainers.BpeTrainer(initial_alphabet=alphabet, vocab_size=330, show_progress=False)
    )
    fast.decoder = decoders.ByteLevel()
    fast.add_special_tokens([END])
    for name, part in parts.items():
        setattr(fast, name, part)
    return fast


def loaded(fast: Fast, folder: Path) -> Tokenizer:
    folder.mkdir(exist_ok=True)
    fast.save(str(folder / "tokenizer.json"))
    return Tokenizer(folder)


def poor(unknown: str | None) -> models.BPE:
    """Some letters only: what is spelled with others is left out, or is `unknown`."""
    letters = {letter: token for token, letter in enumerate("theca onmĠĊ".replace(" ", ""))}
    return models.BPE(vocab=letters, merges=[], unk_token=unknown)


KINDS = {
    "plain": {},
    "normal form": {"normalizer": normalizers.NFC()},
    "leaves letters out": {"model": poor(None)},
    "has an unknown": {"model": poor("m")},
}


@pytest.fixture(scope="module", params=KINDS)
def both(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Tokenizer, Tokenizer]:
    """The same tokenizer, once told by the sizes of its tokens and once by the places that it keeps."""
    folder = tmp_path_factory.mktemp("both")
    fast = trained(**KINDS[request.param])
    by_sizes, by_places = loaded(fast, folder / "a"), loaded(fast, folder / "b")
    assert by_sizes.sizes is not None
    by_places.sizes = None
    return by_sizes, by_places


PIECES = st.sampled_from(
    ["the cat", " sat", "\n", "  ", END, "你好", "é", "e\u0301", "🙂", "x", "\u3000", " on the"]
)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.tuples(st.lists(PIECES, max_size=9), st.lists(st.integers(0, 30), max_size=6)),
        min_size=1,
        max_size=4,
    )
)
def test_places_by_sizes_are_those_that_the_tokenizer_keeps(
    both: tuple[Tokenizer, Tokenizer], talks: list[tuple[list[str], list[int]]]
) -> None:
    rows = []
    for pieces, edges in talks:
        text = "".join(pieces)
        places = sorted({min(edge, len(text)) for edge in edges})
        spans = tuple(Span(start, end) for start, end in zip(places[::2], places[1::2], strict=False))
        rows.append(Supervision(text, spans))
    one, other = (tokenise(rows, tokenizer) for tokenizer in both)
    assert apart(one) == apart(other)


@pytest.mark.parametrize(
    "parts",
    [
        {"normalizer": normalizers.NFKC()},
        {"pre_tokenizer": pre_tokenizers.ByteLevel(add_prefix_space=True)},
        {"pre_tokenizer": pre_tokenizers.Metaspace()},
        {
            "pre_tokenizer": pre_tokenizers.Sequence(
                [pre_tokenizers.Split(" ", "removed"), pre_tokenizers.ByteLevel(add_prefix_space=False)]
            )
        },
        {"model": models.WordLevel({"a": 0}, unk_token="a")},
    ],
    ids=["rewrites", "adds-a-blank", "other-letters", "removes-blanks", "knows-words"],
)
def test_sizes_are_not_trusted_where_a_tokenizer_may_lose_or_add(
    tmp_path: Path, parts: dict[str, Any]
) -> None:
    assert loaded(trained(**parts), tmp_path / "t").sizes is None


def test_a_text_that_the_tokenizer_rewrites_is_told_by_places(tmp_path: Path) -> None:
    tokenizer = loaded(trained(normalizer=normalizers.NFC()), tmp_path / "t")
    assert tokenizer.sizes is not None
    texts = ["e\u0301 cat:", "é cat:"]
    rows = [Supervision(text + "the mat", (Span(len(text), len(text) + 7),)) for text in texts]
    one, other = apart(tokenise(rows, tokenizer))
    assert one == other
    assert tokenizer.decode(token_rows.supervised(one)) == "the mat"
