"""The command `sftjob get`: the jobs as `kubectl get sftjobs` shows them."""

from __future__ import annotations

import json
from collections.abc import Sequence

from rich.console import Console

from sftjob_operator.cli import jobs, table
from sftjob_operator.cli.place import Where, opened
from sftjob_operator.cli.session import now
from sftjob_operator.cluster.base import Manifest


async def get(where: Where, name: str | None, everywhere: bool, form: str, console: Console) -> None:
    """All jobs of the place, or one; where that is goes to stderr, so that a pipe has the table alone."""
    async with opened(where) as place:
        found = [await jobs.find(place, name)] if name else await jobs.every(place, everywhere=everywhere)
        if form == "json":
            whole: object = found[0] if name else {"apiVersion": "v1", "kind": "List", "items": list(found)}
            console.print(json.dumps(whole, indent=1), markup=False, highlight=False, soft_wrap=True)
            return
        words = place.words.partition(", namespace")[0] if everywhere else place.words
        Console(stderr=True, emoji=False).print(
            words, style="dim", markup=False, highlight=False, soft_wrap=True
        )
        if not found:
            console.print(f"no jobs in {words}", markup=False, highlight=False, soft_wrap=True)
            return
        shown = _table(found, everywhere=everywhere, wide=form == "wide")
        console.print(shown, markup=False, highlight=False, soft_wrap=True)


def _table(found: Sequence[Manifest], *, everywhere: bool, wide: bool) -> str:
    header = (*(("NAMESPACE",) if everywhere else ()), *table.COLUMNS, *(table.WIDE if wide else ()))
    rows = []
    for job in sorted(found, key=lambda item: (item["metadata"]["namespace"], item["metadata"]["name"])):
        cells = (*table.row(job, now()), *(table.wide(job) if wide else ()))
        rows.append((job["metadata"]["namespace"], *cells) if everywhere else cells)
    return table.columns(header, rows)
