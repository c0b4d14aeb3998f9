"""What happened to the rows, and the sentence for data of which nothing is left."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from typing import Any

from sft_trainer.config import DataConfig
from sft_trainer.errors import UserError


@dataclass
class Counts:
    """What happened to the rows of all splits, and the tokens of the training rows."""

    rows: int = 0
    eval_rows: int = 0
    tokens: int = 0
    supervised: int = 0
    truncated: int = 0
    dropped: int = 0
    short: int = 0
    skipped: int = 0
    duplicates: int = 0
    longest: int = 0
    read: int = 0
    by_source: dict[str, dict[str, Any]] = field(default_factory=dict)
    skipped_first: list[str] = field(default_factory=list)
    whole: array[int] = field(default_factory=lambda: array("i"))  # tokens of every row before it is cut


def refuse_useless(counts: Counts, rows: int, data: DataConfig) -> None:
    """UserError unless `rows` are left to train on."""
    if rows:
        return
    if counts.skipped == counts.read:
        raise UserError(
            "EmptyData", f"all {counts.read} rows are invalid; the first: {counts.skipped_first[0]}"
        )
    if counts.eval_rows:
        raise UserError("EmptyData", "no row is left to train on: all are held out by data.eval; add rows")
    if counts.short and not counts.dropped:
        raise UserError(
            "EmptyData",
            f"no row is left to train on: {counts.short} of {counts.read} are shorter than data.minLength "
            f"{data.min_length} (longest row {counts.longest} tokens); lower data.minLength",
        )
    if counts.read > counts.skipped + counts.dropped + counts.short + counts.duplicates:
        raise UserError(
            "EmptyData",
            "no row is left to train on: weights below 1 leave all out; raise weight, or add rows",
        )
    raise UserError(
        "NoSupervisedTokens",
        f"no row has a supervised token: of {counts.read} rows {counts.dropped} were dropped "
        f"(data.maxLength {data.max_length}, longest row {counts.longest} tokens, "
        f"data.lossOn {data.loss_on}); raise data.maxLength or check which answers carry loss",
    )
