"""The command `kubectl sftjob run`: applies the file to a cluster and watches the job to its end."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from sftjob_operator.cli import watch
from sftjob_operator.cli.errors import OK, CliError
from sftjob_operator.cli.load import load
from sftjob_operator.cli.place import Where, opened
from sftjob_operator.cluster.base import Rejected, ref_of


async def run(where: Where, file: Path, wait: bool, console: Console) -> int:
    """The exit code of the job; with `wait` False that of the API server's acceptance."""
    load(file, where.namespace)  # what is wrong with it is said before anyone is asked
    async with opened(where) as place:
        manifest = load(file, where.namespace, place.namespace)
        ref = ref_of(manifest)
        there = place.at(ref.namespace)
        try:
            await place.client.apply(manifest)
        except Rejected as error:
            if error.code in (403, 404):
                raise
            raise CliError(f"{file}: {error.message}") from None
        console.print(
            f"{ref.name} is applied to {there.words}", markup=False, highlight=False, soft_wrap=True
        )
        return await watch.follow(there, ref.name, console) if wait else OK
