"""The command `sftjob report`: the report of a job, out of its volume into a file here."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from sftjob_operator.cli import jobs, table, volume
from sftjob_operator.cli.errors import UNKNOWN, CliError
from sftjob_operator.cli.place import Where, opened

FILE = "report/report.html"


async def report(where: Where, name: str, output: Path | None, console: Console) -> None:
    """Fetched to `output`, by default NAME-report.html in the current directory."""
    target = output or Path(f"{name}-report.html")
    if target.is_dir():
        target = target / f"{name}-report.html"
    async with opened(where) as place:
        job = await jobs.find(place, name)
        path = volume.folder(job, FILE)
        try:
            async with volume.opened(place, job) as there:
                data = await there.file(path)
        except volume.Missing:
            raise CliError(
                f"{name} has no report yet: {path} is not on the volume, it is written when the job ends; "
                f"now: {table.sentence(job)}",
                UNKNOWN,
            ) from None
    volume.write(data, target)
    console.print(f"{target} ({len(data):,} bytes)", markup=False, highlight=False, soft_wrap=True)
