"""The commands about a job that exists, in a cluster or on this machine: what each takes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from sftjob_operator.cli import aio, completion
from sftjob_operator.cli.options import Name, NoWait, Output, located
from sftjob_operator.cli.place import Where, local, opened
from sftjob_operator.cli.terminal import console

# Every command imports its work when it is called: `--help` and completion must not wait for it.


@located
def get(
    where: Where,
    name: Annotated[
        str | None,
        typer.Argument(
            help="Name of the job; default: all.", show_default=False, autocompletion=completion.job_names
        ),
    ] = None,
    everywhere: Annotated[bool, typer.Option("--all-namespaces", "-A", help="Of every namespace.")] = False,
    output: Annotated[Literal["text", "wide", "json"], typer.Option("--output", "-o", help="Form.")] = "text",
) -> None:
    """List the jobs."""
    from sftjob_operator.cli import get as command

    aio.run(command.get(where, name, everywhere, output, console()))


@located
def watch(where: Where, name: Name, output: Output = "text") -> None:
    """Look on while a job runs; ends with it, and with its exit code (Ctrl-C ends the looking on alone)."""
    from sftjob_operator.cli import watch as command

    raise typer.Exit(aio.run(command.watch(where, name, output == "json", console())))


@located
def logs(
    where: Where,
    name: Name,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Wait for pods, and go on with the next attempt.")
    ] = False,
    attempt: Annotated[
        int | None,
        typer.Option(help="This one; 0 is preparation. Default: the newest pods.", min=0, show_default=False),
    ] = None,
    previous: Annotated[
        bool, typer.Option("--previous", "-p", help="The attempt before the newest.")
    ] = False,
    rank: Annotated[
        int | None, typer.Option(help="Lines of this rank alone.", min=0, show_default=False)
    ] = None,
    tail: Annotated[
        int | None, typer.Option(help="Last lines of each pod; default: all.", min=1, show_default=False)
    ] = None,
    output: Output = "text",
) -> None:
    """Print what the pods of a job say, each line with its pod; of pods that are gone, the copies on the volume."""
    from sftjob_operator.cli import logs as command

    options = command.Options(name, attempt, previous, rank, follow, tail, output == "json")
    aio.run(command.logs(where, options, console()))


@located
def explain(where: Where, name: Name, output: Output = "text") -> None:
    """Say why a job is not running or why it died, and what to do."""
    from sftjob_operator.cli.explain import command

    aio.run(command.show(where, name, output == "json", console()))


@located
def checkpoints(
    where: Where,
    name: Name,
    verify: Annotated[
        bool, typer.Option("--verify", help="Read every byte of every checkpoint on the volume.")
    ] = False,
    output: Output = "text",
) -> None:
    """List what a job can go on from."""
    from sftjob_operator.cli import checkpoints as command

    raise typer.Exit(aio.run(command.checkpoints(where, name, output, verify, console())))


@located
def chat(
    where: Where,
    name: Name,
    question: Annotated[
        list[str] | None,
        typer.Option("--question", "-q", help="Ask this and leave; may be repeated.", show_default=False),
    ] = None,
    base: Annotated[bool, typer.Option("--base", help="Ask the base model too, for comparison.")] = False,
    max_new_tokens: Annotated[int, typer.Option(help="Length of an answer at most.", min=1)] = 256,
    gpus: Annotated[int, typer.Option(help="In a cluster: GPUs for the pod; 0 = CPU.", min=0)] = 0,
    output: Output = "text",
) -> None:
    """Talk to the model that a job has exported (greedy, so that the same question has the same answer)."""
    from sftjob_operator.cli import chat as command

    options = command.Options(name, question or (), base, max_new_tokens, gpus, output == "json")
    command.chat(where, options, console())


@located
def report(
    where: Where,
    name: Name,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="File or folder; default: NAME-report.html here.", show_default=False
        ),
    ] = None,
) -> None:
    """Fetch the report of a job from its volume; while it runs, or has failed, one made now."""
    from sftjob_operator.cli import report as command

    aio.run(command.report(where, name, output, console()))


@located
def clean(
    where: Where,
    name: Name,
    unused_days: Annotated[
        int, typer.Option(help="Caches that nobody has used for so many days may go.", min=1)
    ] = 30,
    limit: Annotated[
        str | None,
        typer.Option(help="All caches together, such as 500Gi: beyond it the longest unused go, too."),
    ] = None,
    checkpoints: Annotated[
        bool, typer.Option("--checkpoints", help="Checkpoints of jobs that have exported may go, too.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Remove it; without, it is only shown.")] = False,
) -> None:
    """Free the volume of a job from what nobody has used for long; never exports, nor what an open job needs."""
    from sftjob_operator.cli import clean as command

    options = command.Options(name, unused_days, limit, checkpoints, yes)
    aio.run(command.clean(where, options, console()))


@located
def doctor(where: Where, output: Output = "text") -> None:
    """Check a cluster (or this machine): what is missing for jobs to run, and how to repair it."""
    from sftjob_operator.cli.doctor import command

    raise typer.Exit(aio.run(command.doctor(where, output == "json", console())))


@located
def suspend(where: Where, name: Name, no_wait: NoWait = False) -> None:
    """Let the ranks save a checkpoint and stop."""
    from sftjob_operator.cli import localjob
    from sftjob_operator.cli import suspend as command

    if where.is_local:
        raise typer.Exit(localjob.suspend(local(where), name, not no_wait, console()))

    async def work() -> int:
        async with opened(where) as place:
            return await command.suspend(place, name, not no_wait, console())

    raise typer.Exit(aio.run(work()))


@located
def resume(where: Where, name: Name, no_wait: NoWait = False) -> None:
    """Go on with a suspended job; on this machine in the foreground, as `sftjob run`."""
    from sftjob_operator.cli import localjob
    from sftjob_operator.cli import suspend as command

    if where.is_local:
        raise typer.Exit(localjob.resume(local(where), name, not no_wait, console()))

    async def work() -> int:
        async with opened(where) as place:
            return await command.resume(place, name, not no_wait, console())

    raise typer.Exit(aio.run(work()))


@located
def delete(where: Where, name: Name, no_wait: NoWait = False) -> None:
    """Delete a job and end its pods; its files on the volume stay."""
    from sftjob_operator.cli import delete as command
    from sftjob_operator.cli import localjob

    if where.is_local:
        return localjob.remove(local(where), name, console())

    async def work() -> None:
        async with opened(where) as place:
            await command.remote(place, name, not no_wait, console())

    return aio.run(work())


COMMANDS = (get, watch, logs, explain, checkpoints, chat, report, clean, suspend, resume, doctor, delete)


def register(app: typer.Typer) -> None:
    """Make them commands of `app`."""
    for command in COMMANDS:
        app.command()(command)
