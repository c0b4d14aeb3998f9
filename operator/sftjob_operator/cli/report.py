"""The command `sftjob report`: the report of a job, out of its volume into a file here; made now where there is none."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from sftjob_operator.api.objects import is_true
from sftjob_operator.cli import jobs, table, volume
from sftjob_operator.cli.errors import UNKNOWN, CliError
from sftjob_operator.cli.place import Where, opened
from sftjob_operator.cluster.base import Manifest

FILE = "report/report.html"


async def report(where: Where, name: str, output: Path | None, console: Console) -> None:
    """Fetched to `output`, by default NAME-report.html in the current directory."""
    target = output or Path(f"{name}-report.html")
    if target.is_dir():
        target = target / f"{name}-report.html"
    async with opened(where) as place:
        job = await jobs.find(place, name)
        try:
            async with volume.opened(place, job) as there:
                data = await _written(there, job) or await there.report(name)
        except volume.Missing as error:
            raise CliError(
                f"{name} has no report yet: {error}; now: {table.sentence(job)}", UNKNOWN
            ) from None
    volume.write(data, target)
    console.print(f"{target} ({len(data):,} bytes)", markup=False, highlight=False, soft_wrap=True)


async def _written(there: volume.Volume, job: Manifest) -> bytes | None:
    """What the job left when it was complete; before, a page of an earlier run may lie there."""
    if not is_true(job, "Complete"):
        return None
    try:
        return await there.file(volume.folder(job, FILE))
    except volume.Missing:
        return None
