"""`sftjob data inspect`: what a job would make of data, before there is one.

The trainer's own code looks at the files, in a process of its own: the command line works without it installed.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from sftjob_operator.cli.errors import CliError

Findings = Mapping[str, Any]
_BAR = 40
_LEARNED = "bold green"


@dataclass(frozen=True)
class Options:
    """What is looked at, and how; the names are those of the trainer's command."""

    files: Sequence[Path]
    model: Path
    template: str | None
    max_length: int
    min_length: int | None
    loss_on: str
    format: str
    columns: Sequence[str]
    deduplicate: str
    row: int

    def arguments(self) -> list[str]:
        """As the trainer takes them."""
        more = ["--template", self.template] if self.template else []
        more += ["--min-length", str(self.min_length)] if self.min_length else []
        more += [word for column in self.columns for word in ("--column", column)]
        settings = ["--max-length", str(self.max_length), "--loss-on", self.loss_on, "--row", str(self.row)]
        settings += ["--format", self.format, "--deduplicate", self.deduplicate]
        return ["--model", str(self.model), *settings, *more, "--", *map(str, self.files)]


def inspect(options: Options, as_json: bool, console: Console) -> None:
    """Print the findings; CliError in the trainer's words where it has none."""
    with console.status("reading ..."):
        text = _run(options.arguments())
    if as_json:
        console.print(text, end="", markup=False, highlight=False, soft_wrap=True)
        return
    found = json.loads(text)
    console.print(_counts(found))
    console.print(_histogram(found["lengths"]))
    for line in _invalid(found):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    console.print(
        _row(found["row"], is_coloured=console.is_terminal and not console.no_color), soft_wrap=True
    )


def _run(arguments: Sequence[str]) -> str:
    command = [sys.executable, "-m", "sft_trainer", "inspect", *arguments]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", check=False)
    if done.returncode == 0:
        return done.stdout
    said = done.stderr.strip().splitlines() or [f"the trainer left with exit code {done.returncode}"]
    if said[-1].startswith("ModuleNotFoundError") or "No module named" in said[-1]:
        raise CliError(f"the trainer is not installed here: pip install 'sftjob[trainer]' ({said[-1]})")
    raise CliError(said[-1])


def _counts(found: Findings) -> Table:
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="bold")
    table.add_column(justify="right")
    table.add_column(style="dim")
    tokens, supervised = found["tokens"], found["supervisedTokens"]
    rows = [
        ("rows", found["rows"], f"of {found['read']:,} read, {', '.join(found['formats'])}"),
        ("tokens", tokens, f"{tokens / found['rows']:.0f} a row after cutting"),
        ("supervised", supervised, f"{100 * supervised / tokens:.0f} % of the tokens"),
        ("truncated", found["truncatedRows"], f"longer than {found['maxLength']:,} tokens"),
        ("dropped", found["droppedRows"], "without a supervised token"),
        ("short", found["shortRows"], f"left out, of less than {found['minLength']} tokens"),
        ("duplicates", found["duplicateRows"], "left out"),
        ("invalid", found["invalidRows"], "left out here; by a job with data.onInvalidRow: Skip"),
        ("sequences", found["packs"], f"of {found['maxLength']:,} tokens, {found['fillPercent']} % full"),
    ]
    for name, number, remark in rows:
        is_idle = not number and name in ("truncated", "dropped", "short", "duplicates", "invalid")
        table.add_row(name, f"{number:,}", "" if is_idle else remark)
    return table


def _histogram(lengths: Findings) -> Text:
    """Bars of rows by length, and the percentiles under them."""
    bins = [one for one in lengths["histogram"] if one["rows"]]
    most = max(one["rows"] for one in bins)
    text = Text("\ntokens a row\n", style="bold")
    for one in bins:
        bar = "█" * max(1, round(_BAR * one["rows"] / most))
        text.append(f"  ≤ {one['upTo']:>9,} {bar} {one['rows']:,}\n", style="not bold")
    marks = ", ".join(f"{name} {lengths[name]:,}" for name in ("p50", "p90", "p95", "p99", "longest"))
    return text.append(f"  mean {lengths['mean']:,}, {marks}\n", style="not bold")


def _invalid(found: Findings) -> Iterator[str]:
    if found["invalid"]:
        yield "invalid rows" + (", the first:" if found["invalidRows"] > len(found["invalid"]) else ":")
        yield from (f"  {one}" for one in found["invalid"])
        yield ""


def _row(row: Findings, *, is_coloured: bool) -> Text:
    """The row's text; what carries loss in colour, or between « and » where there is none."""
    text = Text(
        f"row {row['number']}: {row['tokens']:,} tokens, {row['supervisedTokens']:,} supervised", "bold"
    )
    text.append(" (green)\n" if is_coloured else " («…»)\n")
    for piece in row["pieces"]:
        words, weight = piece["text"], piece["weight"]
        if not weight:
            text.append(words, style="not bold")
            continue
        mark = "" if weight == 1 else f"[{weight:g} x]"
        text.append(f"{mark}{words}" if is_coloured else f"«{mark}{words}»", style=f"not bold {_LEARNED}")
    return text
