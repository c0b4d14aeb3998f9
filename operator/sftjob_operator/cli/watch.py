"""The command `sftjob watch`: one job, live, until it ends; its exit code is the job's."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable, Iterator, Sequence

from rich.console import Console
from rich.live import Live

from sftjob_operator.api.objects import condition
from sftjob_operator.api.status import ProgressStatus
from sftjob_operator.cli import farewell, jobs, live, logs, table
from sftjob_operator.cli.errors import FAILED, OK, UNKNOWN, CliError
from sftjob_operator.cli.explain import command as explaining
from sftjob_operator.cli.explain.story import explain
from sftjob_operator.cli.place import Place, Where, opened
from sftjob_operator.cli.session import now
from sftjob_operator.cluster.base import ClusterError, Manifest, Rejected
from sftjob_operator.cluster.patience import Patience
from sftjob_operator.policy.running import progress_of
from sftjob_operator.reports import read_progress

LOOK_SECONDS = 2.0

Show = Callable[[Manifest, Sequence[Manifest], Sequence[Manifest]], None]
"""Told of job, its Events and its pods."""


async def watch(where: Where, name: str, as_json: bool, console: Console) -> int:
    """Until the job is complete (0) or can go on no more (1, or 2 for a spec that is wrong)."""
    async with opened(where) as place:
        return await follow(place, name, console, as_json=as_json)


async def follow(place: Place, name: str, console: Console, *, as_json: bool = False) -> int:
    """The same in a place that is open; as JSON the job itself, a line each time that its status is another."""
    await jobs.find(place, name)
    with _objects(console) if as_json else _display(console) as show:
        job = await _until_over(place, name, show)
    if as_json:
        code = outcome(job)
        return FAILED if code is None else code
    return await _last_words(place, job, console)


async def _events(place: Place, name: str) -> list[Manifest]:
    """They help, and not everybody may list them."""
    try:
        return list(await place.client.events_about(jobs.ref(place, name)))
    except Rejected:
        return []


async def _until_over(place: Place, name: str, show: Show) -> Manifest:
    patience = Patience()
    while True:
        try:
            job = await place.client.get(jobs.ref(place, name))
            if job is None:
                raise CliError(f"{name} was deleted", FAILED)
            pods = logs.of_attempt(await jobs.pods(place, name), None)
            events = await _events(place, name)
            shown = await _fresh(place, job, pods)
            patience.renew()
        except ClusterError as error:
            patience.bear(error)
            await asyncio.sleep(LOOK_SECONDS)
            continue
        show(shown, events, pods)
        if outcome(job) is not None:
            return job
        if not place.client.is_carried_on():
            raise CliError(
                f"{name} is not over ({table.sentence(job)}), and no `sftjob run` carries it on: "
                f"{place.command('resume', name)}",
                UNKNOWN,
            )
        await asyncio.sleep(LOOK_SECONDS)


def outcome(job: Manifest) -> int | None:
    """The exit code of a job that is over, or that waits for another spec; None while it goes on."""
    from sftjob_operator.cli import session

    if job.get("status", {}).get("observedGeneration") != job["metadata"].get("generation"):
        return None
    code = session.outcome(job)
    reason = condition(job, "Running").get("reason")
    return None if reason in session.MISSING else code  # somebody may bring it


async def _fresh(place: Place, job: Manifest, pods: Sequence[Manifest]) -> Manifest:
    """The job with the progress that rank 0 tells now; the status has it only twice a minute."""
    first = next((pod for pod in pods if logs.index(pod) == 0 and logs.short(pod) != "prepare"), None)
    if first is None or first.get("status", {}).get("phase") != "Running":
        return job
    body = await place.client.fetch_progress(first)
    heard = read_progress(body)
    if heard is None or heard.total_steps == 0:
        return job
    told: ProgressStatus = progress_of(heard)
    fresh = told.model_dump(mode="json", by_alias=True, exclude_none=True)
    return {**job, "status": {**job.get("status", {}), "progress": fresh}}


@contextlib.contextmanager
def _objects(console: Console) -> Iterator[Show]:
    said: Manifest = {}

    def print_object(job: Manifest, events: Sequence[Manifest], pods: Sequence[Manifest]) -> None:
        nonlocal said
        if job.get("status") != said:
            said = job.get("status", {})
            console.print(json.dumps(job, ensure_ascii=False), markup=False, highlight=False, soft_wrap=True)

    yield print_object


@contextlib.contextmanager
def _display(console: Console) -> Iterator[Show]:
    losses = live.Losses()
    if not console.is_terminal:
        lines = table.Lines()

        def print_line(job: Manifest, events: Sequence[Manifest], pods: Sequence[Manifest]) -> None:
            line = lines.next(job, now())
            if line is not None:
                console.print(line, markup=False, highlight=False, soft_wrap=True)

        yield print_line
        return
    with Live(console=console, auto_refresh=False, transient=False) as screen:

        def draw(job: Manifest, events: Sequence[Manifest], pods: Sequence[Manifest]) -> None:
            losses.see(job.get("status", {}).get("progress", {}))
            more = [line for line in (losses.line(table.BAR), live.pods_line(pods)) if line]
            screen.update(table.screen(job, events, now(), more=more), refresh=True)

        yield draw


async def _last_words(place: Place, job: Manifest, console: Console) -> int:
    code = outcome(job)
    if code == OK:
        for line in farewell.reached(job):
            console.print(line, markup=False, highlight=False, soft_wrap=True)
        return OK
    console.print()
    facts = await explaining.gather(place, job["metadata"]["name"])
    explaining.say(explain(facts, explaining.shell(place)), console)
    return FAILED if code is None else code
