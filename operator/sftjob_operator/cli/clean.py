"""The command `sftjob clean`: what nobody has used for long on a job's volume, shown first and removed with --yes.

The cluster knows which jobs are not over, suspended ones too, and the volume when a cache was last used: both protect.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console

from sft_trainer.config import CollectConfig
from sftjob_operator.cli import jobs, table, volume
from sftjob_operator.cli.errors import CliError
from sftjob_operator.cli.place import Where, opened
from sftjob_operator.cluster.base import Manifest
from sftjob_operator.desired.claim import claim_name_in
from sftjob_operator.desired.collect import with_open_jobs
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
        policy = with_open_jobs(_policy(options), claim_name_in(job), await jobs.every(place))
        request = {**policy.model_dump(by_alias=True, exclude_none=True), "remove": options.remove}
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


def _policy(options: Options) -> CollectConfig:
    try:
        limit = None if options.limit is None else quantity_bytes(options.limit)
    except ValueError as error:
        raise CliError(f"--limit {options.limit}: {error}") from None
    return CollectConfig(
        unused_seconds=options.unused_days * _DAY, limit_bytes=limit, checkpoints=options.checkpoints
    )


def _shown(found: Sequence[Manifest]) -> str:
    rows = [(each["path"], gibibytes(each["bytes"]), f"{each['unusedSeconds'] // _DAY}d") for each in found]
    return table.columns(COLUMNS, rows)
