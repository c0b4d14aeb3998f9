"""The command `sftjob clean`: what nobody has used for long on a job's volume, shown first and removed with --yes.

The cluster knows which jobs are not over, suspended ones too, and the volume when a cache was last used: both protect.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console

from sftjob_operator.cli import jobs, table, volume
from sftjob_operator.cli.errors import CliError
from sftjob_operator.cli.place import Where, opened
from sftjob_operator.cluster.base import Manifest
from sftjob_operator.desired.claim import claim_name_in
from sftjob_operator.planning.hardware import gibibytes, quantity_bytes

COLUMNS = ("PATH", "SIZE", "UNUSED")
_DAY = 24 * 3600


@dataclass(frozen=True)
class Options:
    """What the person said."""

    name: str
    unused_days: int
    limit: str | None
    checkpoints: bool
    remove: bool


async def clean(where: Where, options: Options, console: Console) -> None:
    """Show or remove."""
    async with opened(where) as place:
        job = await jobs.find(place, options.name)
        request = {**_request(options), **in_use(job, await jobs.every(place))}
        async with volume.opened(place, job, writable=options.remove) as there:
            found = [dict(answer) async for answer in there.ask(do="collect", **request)]
        again = place.command("clean", options.name)
    size = gibibytes(sum(item["bytes"] for item in found))
    if not found:
        words = f"nothing that has been unused for {options.unused_days} days"
    elif options.remove:
        words = f"{size} are free again"
    else:
        words = f"{size} would be free: the same with --yes removes it ({again} ... --yes)"
    for text in (_shown(found), words) if found else (words,):
        console.print(text, markup=False, highlight=False, soft_wrap=True)


def in_use(job: Manifest, every: Sequence[Manifest]) -> dict[str, list[str]]:
    """Names, and folders of model and data, of the jobs on the same claim that are not over."""
    same = [each for each in every if claim_name_in(each) == claim_name_in(job)]
    open_ = [each for each in same if not (table.is_true(each, "Complete") or table.is_true(each, "Failed"))]
    directories = [folder for each in open_ for folder in _folders(each)]
    return {"jobs": [each["metadata"]["name"] for each in open_], "directories": directories}


def _folders(job: Manifest) -> list[str]:
    facts = (job.get("status", {}).get("prepared") or {}).get("facts") or {}
    found = [facts.get("model", {}).get("directory"), facts.get("data", {}).get("cache")]
    return [str(folder) for folder in found if folder]


def _request(options: Options) -> dict[str, Any]:
    request: dict[str, Any] = {
        "unusedSeconds": options.unused_days * _DAY,
        "checkpoints": options.checkpoints,
        "remove": options.remove,
    }
    if options.limit is not None:
        try:
            request["limitBytes"] = quantity_bytes(options.limit)
        except ValueError as error:
            raise CliError(f"--limit {options.limit}: {error}") from None
    return request


def _shown(found: Sequence[Manifest]) -> str:
    rows = [(each["path"], gibibytes(each["bytes"]), f"{each['unusedSeconds'] // _DAY}d") for each in found]
    return table.columns(COLUMNS, rows)
