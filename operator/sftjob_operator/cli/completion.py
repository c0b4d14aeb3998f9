"""Names of jobs for the shell's completion: those of the place that the line so far speaks of."""

from __future__ import annotations

import asyncio
from pathlib import Path

import click

from sftjob_operator.cli.place import Where

PATIENCE_SECONDS = 3.0
"""A shell that waits longer for Tab seems to hang."""


def job_names(ctx: click.Context, incomplete: str) -> list[str]:
    """Names that begin so; none where the place does not answer, for completion must not complain."""
    try:
        return asyncio.run(asyncio.wait_for(_names(where(ctx), incomplete), PATIENCE_SECONDS))
    except Exception:
        return []


def where(ctx: click.Context) -> Where:
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
