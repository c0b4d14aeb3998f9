"""Completion: names of jobs of the place that the line so far speaks of, and the answers that kubectl asks a plugin for."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

import typer

from sftjob_operator.cli.place import Where

_NO_FILES = ":4"
"""The directive of Cobra, kubectl's command line, after which the shell offers no names of files."""
PATIENCE_SECONDS = 3.0
"""A shell that waits longer for Tab seems to hang."""


def job_names(ctx: typer.Context, incomplete: str) -> list[str]:
    """Names that begin so; none where the place does not answer, for completion must not complain."""
    try:
        return asyncio.run(asyncio.wait_for(_names(where(ctx), incomplete), PATIENCE_SECONDS))
    except Exception:
        return []


def where(ctx: typer.Context) -> Where:
    """What the options before the cursor say of the place."""
    said = ctx.params
    state = said.get("state")
    return Where(
        namespace=said.get("namespace"),
        context=said.get("context"),
        kubeconfig=said.get("kubeconfig"),
        local=bool(said.get("local")),
        state=Path(state) if state else None,
    )


async def _names(place: Where, incomplete: str) -> list[str]:
    from sftjob_operator.cli import jobs
    from sftjob_operator.cli.place import opened

    async with opened(place) as there:
        names = [str(job["metadata"]["name"]) for job in await jobs.every(there, everywhere=False)]
    return sorted(name for name in names if name.startswith(incomplete))


def main() -> None:
    """`kubectl_complete-sftjob WORDS... INCOMPLETE`, as kubectl calls it when Tab follows `kubectl sftjob`."""
    from click.shell_completion import ShellComplete
    from typer.main import get_command

    from sftjob_operator.cli.app import app

    *words, incomplete = sys.argv[1:] or [""]
    command: Any = get_command(app)  # typer brings a click of its own, of the same shape
    found = ShellComplete(command, {}, "sftjob", "").get_completions(words, incomplete)
    lines = [f"{one.value}\t{one.help}" if one.help else one.value for one in found]
    sys.stdout.write("\n".join([*lines, _NO_FILES]) + "\n")
