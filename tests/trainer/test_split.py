"""Which rows are held out does not change when others come: before, between or behind them, or in another source."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tiny
from preparing import chat
from sft_trainer.config import DataConfig, DataSource, EvalSplit
from sft_trainer.data import content, finding
from sft_trainer.data.cache import Split
from sft_trainer.data.formats import conversation
from sft_trainer.data.ingest import Ingest, Recipe
from sft_trainer.data.template import ChatTemplate
from sft_trainer.data.tokenizer import Tokenizer
from sft_trainer.errors import UserError

ROWS = st.lists(st.integers(0, 10**6), min_size=1, max_size=60)


class Sides(NamedTuple):
    """The texts on each side, and whether any is held out by its hash rather than because one has to be."""

    train: set[str]
    held_out: set[str]
    by_hash: bool


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer(tiny.model(tmp_path_factory.mktemp("model")))


def split(tokenizer: Tokenizer, percent: int, deduplicate: str, *files: tuple[list[int], float]) -> Sides:
    """Prepared from sources of these rows and weights."""
    rows = [[chat(str(number), "x") for number in numbers] for numbers, _ in files]
    train = [
        DataSource(name=str(index), inline="\n".join(map(json.dumps, some)), weight=weight)
        for index, (some, (_, weight)) in enumerate(zip(rows, files, strict=True))
    ]
    data = DataConfig(
        train=train,
        eval=EvalSplit(split_percent=percent),
        max_length=128,
        packing="BestFit",
        loss_on="Assistant",
        on_too_long="Truncate",
        on_invalid_row="Fail",
        deduplicate=deduplicate,
    )
    prints = [content.fingerprint(conversation(row, "Messages", {})) for some in rows for row in some]
    with tempfile.TemporaryDirectory() as name:
        opened = [finding.find(f"train[{index}]", one, Path(name)) for index, one in enumerate(train)]
        template = ChatTemplate(tiny.CHATML, tokenizer.special_tokens)
        Ingest(Recipe(data, tokenizer, template, 2**31 - 1), Path(name)).run(opened)
        found = [Split(Path(name) / f"{side}.arrow") for side in ("train", "eval")]
        texts = [{tokenizer.decode(one.row(i)[0].tolist()) for i in range(len(one))} for one in found]
    return Sides(*texts, any(content.is_held_out(one, percent) for one in prints))


@pytest.mark.slow
@given(ROWS, ROWS, st.integers(1, 50), st.sampled_from(["None", "Exact"]), st.sampled_from([0.5, 1, 2.5]))
@settings(max_examples=40, deadline=None)
def test_no_row_changes_its_side_when_others_come(
    tokenizer: Tokenizer, first: list[int], more: list[int], percent: int, deduplicate: str, weight: float
) -> None:
    try:
        few = split(tokenizer, percent, deduplicate, (first, weight))
        many = split(tokenizer, percent, deduplicate, (more, 1), (sorted([*first, *more]), weight))
    except UserError as error:
        if error.reason != "EmptyData":  # all are held out, or left out by a weight below 1
            raise
        return
    assert not few.train & few.held_out
    assert not many.train & many.held_out
    if few.held_out:  # of rows that are all equal none is
        assert not few.train & many.held_out
    if few.by_hash:  # the only one of a few may go back to training when another is likelier
        assert not few.held_out & many.train
