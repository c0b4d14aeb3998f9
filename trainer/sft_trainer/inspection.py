"""`python -m sft_trainer inspect`: what preparation would make of files, as JSON, for people who look at their data.

The same code reads, renders and counts as in a job, so that what is shown is what would be trained on. Rows that cannot
be read are counted and named instead of ending it.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, get_args

import numpy as np

from sft_trainer.config import ChatTemplate, DataConfig, DataFormat, DataSource
from sft_trainer.data import finding, packing, tokenizer
from sft_trainer.data.cache import Split
from sft_trainer.data.ingest import Ingest, Recipe
from sft_trainer.data.sources import Opened
from sft_trainer.data.tokenizer import Tokenizer
from sft_trainer.errors import TrainerError, UserError, classify

_PERCENTILES = (50, 90, 95, 99)
_SMALLEST_BIN = 16  # tokens; every other bin is twice as wide
_ANY_TOKEN = 2**31 - 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the findings to stdout; returns the exit code."""
    options = _parser().parse_args(arguments)
    try:
        found = inspect(_opened(options), _recipe(options), options.row)
    except (TrainerError, OSError) as error:
        failure = classify(error)
        sys.stderr.write(f"{failure.message}\n")
        return int(failure.exit_code)
    sys.stdout.write(json.dumps(found, ensure_ascii=False, indent=1) + "\n")
    return 0


def _opened(options: argparse.Namespace) -> list[Opened]:
    paths = [path.resolve() for path in options.files]
    root = Path(os.path.commonpath([path.parent for path in paths]))
    how = {"format": options.format, "columns": dict(options.column)}
    return [
        finding.find(f"train[{i}]", DataSource(name=str(i), path=str(path.relative_to(root)), **how), root)
        for i, path in enumerate(paths)
    ]


def inspect(opened: Sequence[Opened], recipe: Recipe, number: int) -> dict[str, Any]:
    """Counts, lengths and packs of all rows, and row `number` (from one) of those that would be trained on."""
    with tempfile.TemporaryDirectory() as folder:
        counts, lengths = Ingest(recipe, Path(folder)).run(opened)
        if not 1 <= number <= len(lengths):
            raise UserError("InvalidArguments", f"--row {number}: there are rows 1 to {len(lengths)}")
        shown = _row(Split(Path(folder) / "train.arrow"), number, recipe.tokenizer)
    packs = packing.count(lengths, recipe.data.max_length)
    return {
        "read": counts.read,
        "rows": len(lengths),
        "tokens": counts.tokens,
        "supervisedTokens": counts.supervised,
        "truncatedRows": counts.truncated,
        "droppedRows": counts.dropped,
        "shortRows": counts.short,
        "duplicateRows": counts.duplicates,
        "invalidRows": counts.skipped,
        "invalid": counts.skipped_first,
        "formats": sorted({source["format"] for source in counts.by_source.values()}),
        "lengths": _lengths(np.asarray(counts.whole)),
        "maxLength": recipe.data.max_length,
        "minLength": recipe.data.min_length,
        "packs": packs,
        "fillPercent": packing.fill_percent(lengths, packs, recipe.data.max_length),
        "row": shown,
    }


def _lengths(whole: Any) -> dict[str, Any]:
    """Tokens of the rows before any is cut: their percentiles, and how many there are up to each doubling."""
    found = {f"p{one}": int(np.percentile(whole, one, method="higher")) for one in _PERCENTILES}
    edges = [_SMALLEST_BIN]
    while edges[-1] < whole.max():
        edges.append(2 * edges[-1])
    bins = np.bincount(np.searchsorted(edges, whole), minlength=len(edges))
    histogram = [{"upTo": edge, "rows": int(rows)} for edge, rows in zip(edges, bins, strict=True)]
    return {
        "mean": round(float(whole.mean()), 1),
        **found,
        "longest": int(whole.max()),
        "histogram": histogram,
    }


def _row(split: Split, number: int, words: Tokenizer) -> dict[str, Any]:
    """One row as pieces of text that count alike."""
    ids, weights = split.row(number - 1)
    return {
        "number": number,
        "tokens": len(ids),
        "supervisedTokens": int(np.count_nonzero(weights)),
        "pieces": list(_pieces(ids.tolist(), weights.tolist(), words)),
    }


def _pieces(ids: list[int], weights: list[float], words: Tokenizer) -> Iterator[dict[str, Any]]:
    for weight, run in groupby(zip(ids, weights, strict=True), key=lambda one: one[1]):
        yield {"text": words.decode([token for token, _ in run]), "weight": round(weight, 6)}


def _recipe(options: argparse.Namespace) -> Recipe:
    words = Tokenizer(options.model)
    chosen, root = None, Path()
    if options.template == "ChatML":
        chosen = ChatTemplate(preset="ChatML")
    elif options.template:
        path = Path(options.template).resolve()
        chosen, root = ChatTemplate(path=path.name), path.parent
    template = tokenizer.chat_template(options.model, words, chosen, root)
    data = DataConfig(
        train=[],
        max_length=options.max_length,
        min_length=options.min_length,
        packing="BestFit",
        loss_on=options.loss_on,
        on_too_long="Truncate",
        on_invalid_row="Skip",
        deduplicate=options.deduplicate,
    )
    return Recipe(data, words, template, _ANY_TOKEN)


def _column(text: str) -> tuple[str, str]:
    ours, separator, yours = text.partition("=")
    if not (ours and separator and yours):
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form OURS=YOURS")
    return ours, yours


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m sft_trainer inspect", description="Look at chat data.")
    parser.add_argument(
        "files", nargs="+", type=Path, help="files or folders, as data.train[].path takes them"
    )
    parser.add_argument("--model", type=Path, required=True, help="Hugging Face folder with tokenizer.json")
    parser.add_argument("--template", help="a jinja file, or ChatML; default: the model's own")
    parser.add_argument("--max-length", type=int, default=2048)
    parser.add_argument("--min-length", type=int)
    parser.add_argument("--loss-on", default="Assistant", choices=["Assistant", "LastAssistant", "AllTokens"])
    parser.add_argument("--format", default="Auto", choices=get_args(DataFormat))
    parser.add_argument(
        "--column", type=_column, action="append", default=[], help="OURS=YOURS, as in data.train[].columns"
    )
    parser.add_argument("--deduplicate", default="None", choices=["None", "Exact"])
    parser.add_argument("--row", type=int, default=1, help="which row is shown")
    return parser
