"""The commands `sftjob suspend` and `sftjob resume` on a cluster: spec.suspend, and what the operator makes of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from rich.console import Console

from sftjob_operator.api.objects import is_true
from sftjob_operator.cli import jobs, table
from sftjob_operator.cli.errors import FAILED, OK, CliError
from sftjob_operator.cli.place import Place
from sftjob_operator.cluster.base import Manifest

LOOK_SECONDS = 1.0


async def suspend(place: Place, name: str, wait: bool, console: Console) -> int:
    """The ranks save a checkpoint and stop; the exit code."""
    return await _set(place, name, True, wait, _is_suspended, console)


async def resume(place: Place, name: str, wait: bool, console: Console) -> int:
    """The same Job or the next attempt goes on; the exit code."""
    return await _set(place, name, False, wait, _runs, console)


async def _set(
    place: Place, name: str, wanted: bool, wait: bool, is_done: Callable[[Manifest], bool], console: Console
) -> int:
    job = await jobs.find(place, name)
    check_open(job)
    word = "suspended" if wanted else "resumed"
    if bool(job["spec"].get("suspend")) == wanted:
        console.print(f"{name} is {word} already", markup=False, highlight=False)
    else:
        job = await place.client.patch(jobs.ref(place, name), {"spec": {"suspend": wanted}})
    if not wait:
        console.print(f"{name} is asked to be {word}", markup=False, highlight=False)
        return OK
    said = ""
    while True:
        words = table.sentence(job)
        if words != said:
            said = words
            console.print(words, markup=False, highlight=False, soft_wrap=True)
        if is_current(job):
            if is_true(job, "Failed"):
                return FAILED
            if is_done(job) or is_true(job, "Complete"):
                return OK
        await asyncio.sleep(LOOK_SECONDS)
        job = await jobs.find(place, name)


def check_open(job: Manifest) -> None:
    """CliError for a job that is over."""
    for type_, words in (("Complete", "is complete"), ("Failed", "has failed")):
        if is_true(job, type_):
            raise CliError(
                f"{job['metadata']['name']} {words}: there is nothing left to stop or to go on with"
            )


def is_current(job: Manifest) -> bool:
    """Whether the status speaks of the spec as it is."""
    return bool(job.get("status", {}).get("observedGeneration") == job["metadata"].get("generation"))


def _is_suspended(job: Manifest) -> bool:
    return is_true(job, "Suspended")


def _runs(job: Manifest) -> bool:
    return is_true(job, "Running")
