"""The command line `sftjob` (and `kubectl sftjob`): what each command takes; the work is in its own module."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console

from sftjob_operator.cli import aio, verbs
from sftjob_operator.cli.errors import INTERRUPTED, CliError
from sftjob_operator.cli.options import NoWait, located
from sftjob_operator.cli.place import Where
from sftjob_operator.cli.terminal import console

HELP = """Fine-tune chat models: run an SFTJob, watch it, find out why it does not run, talk to the result.

The jobs are those of a cluster (--context, --kubeconfig; always for `kubectl sftjob`) or of this machine (--local,
--state). Without any of these `sftjob` takes this machine where the current directory holds .sftjob/state, else the
cluster of the kubeconfig.

Exit codes: 0 done, or the job is complete; 1 the job failed, or a check did; 2 wrong input; 3 the cluster does not
answer or refuses, or nobody carries the job on; 130 Ctrl-C.
"""

app = typer.Typer(
    name="sftjob",
    help=HELP,
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

data_app = typer.Typer(help="Look at training data.", no_args_is_help=True)
app.add_typer(data_app, name="data")

File = Annotated[Path, typer.Argument(help="A YAML file with one SFTJob.", show_default=False)]


@app.command()
@located
def run(
    where: Where,
    file: File,
    workspace: Annotated[
        Path | None,
        typer.Option(
            help="On this machine: the directory that is the volume of spec.workspace; default: the file's.",
            show_default=False,
        ),
    ] = None,
    secret: Annotated[
        list[str] | None,
        typer.Option(
            help="On this machine: NAME=FILE, a Secret with the KEY=VALUE lines of a file.",
            show_default=False,
        ),
    ] = None,
    no_wait: NoWait = False,
) -> None:
    """Run a job to its end: on this machine, or as `kubectl sftjob run` (or with --context) in a cluster.

    On this machine it is the same operator over local processes; its objects and logs are kept in --state, by default
    .sftjob/state beside the file. Ctrl-C suspends the job (the ranks save a checkpoint), and the same command goes on
    with it; a run that was killed is taken up again, with the ranks that still live. In a cluster the file is applied
    and the job watched; Ctrl-C ends the watching alone.
    """
    from sftjob_operator.cli import apply, place
    from sftjob_operator.cli import run as command

    if where.context or where.kubeconfig or (place.is_plugin() and not (where.local or where.state)):
        if workspace or secret:
            raise CliError("--workspace and --secret are for a run on this machine: a cluster has its own")
        raise typer.Exit(aio.run(apply.run(where, file, not no_wait, console())))
    if no_wait:
        raise CliError("on this machine a job runs in the foreground: leave --no-wait out")
    options = command.Options(
        file=file,
        workspace=(workspace or file.parent).resolve(),
        state=(where.state or file.parent / place.STATE).resolve(),
        namespace=where.namespace,
        secrets=secret or (),
    )
    raise typer.Exit(command.run(options, console()))


@app.command()
def render(
    file: File,
    facts: Annotated[
        Path | None,
        typer.Option(help="JSON as in status.prepared.facts; default: placeholders.", show_default=False),
    ] = None,
    namespace: Annotated[
        str | None, typer.Option("--namespace", "-n", help="Namespace of the job; default: the file's.")
    ] = None,
    image: Annotated[
        str, typer.Option(help="Trainer image where the job names none.")
    ] = "sftjob-trainer:latest",
) -> None:
    """Print what the operator would create, and the `deepspeed` command that does the same."""
    from sftjob_operator.cli import render as command
    from sftjob_operator.settings import Settings

    sys.stdout.write(
        command.render(file, facts, namespace, Settings(trainer_image=image, pod_security="Privileged"))
    )


@data_app.command("inspect")
def inspect_data(
    files: Annotated[
        list[Path],
        typer.Argument(help="Files or folders: .jsonl, .json, .parquet.", exists=True, show_default=False),
    ],
    model: Annotated[
        Path,
        typer.Option(
            help="Hugging Face folder whose tokenizer and template are used.",
            exists=True,
            file_okay=False,
            show_default=False,
        ),
    ],
    template: Annotated[
        str | None,
        typer.Option(help="A jinja file, or ChatML; default: the model's own.", show_default=False),
    ] = None,
    max_length: Annotated[int, typer.Option(help="As data.maxLength.", min=16)] = 2048,
    min_length: Annotated[
        int | None, typer.Option(help="As data.minLength.", min=1, show_default=False)
    ] = None,
    loss_on: Annotated[
        Literal["Assistant", "LastAssistant", "AllTokens"], typer.Option(help="As data.lossOn.")
    ] = "Assistant",
    form: Annotated[
        Literal["Auto", "Messages", "ShareGPT", "Alpaca", "PromptCompletion", "PromptChosen"],
        typer.Option("--format", help="As data.train[].format."),
    ] = "Auto",
    column: Annotated[
        list[str] | None,
        typer.Option(help="OURS=YOURS, as in data.train[].columns; may be given again.", show_default=False),
    ] = None,
    deduplicate: Annotated[Literal["None", "Exact"], typer.Option(help="As data.deduplicate.")] = "None",
    row: Annotated[int, typer.Option(help="The row that is shown, counted from 1.", min=1)] = 1,
    output: Annotated[Literal["text", "json"], typer.Option("--output", "-o", help="Form.")] = "text",
) -> None:
    """Show what a job would make of data: counts, lengths, and a row with the tokens that carry loss."""
    from sftjob_operator.cli import data as command

    options = command.Options(
        files, model, template, max_length, min_length, loss_on, form, column or [], deduplicate, row
    )
    command.inspect(options, output == "json", console())


verbs.register(app)


def main() -> None:
    """Entry of the console script: a CliError is a sentence on stderr and an exit code."""
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except CliError as error:
        Console(stderr=True, emoji=False).print(
            f"error: {error}", markup=False, highlight=False, soft_wrap=True
        )
        sys.exit(error.code)


if __name__ == "__main__":
    main()
