"""The command line `sftjob` (and `kubectl sftjob`): what each command takes; the work is in its own module.

Exit codes: 0 done or Complete, 1 the job failed, 2 wrong input, 130 interrupted.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console

from sftjob_operator.cli.errors import CliError
from sftjob_operator.cli.terminal import console
from sftjob_operator.cluster.base import Key

STATE = Path(".sftjob") / "state"

app = typer.Typer(
    name="sftjob",
    help="Fine-tune chat models: run an SFTJob on this machine, or see what the operator would make of it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

data_app = typer.Typer(help="Look at training data.", no_args_is_help=True)
app.add_typer(data_app, name="data")

File = Annotated[Path, typer.Argument(help="A YAML file with one SFTJob.", show_default=False)]
Namespace = Annotated[
    str | None, typer.Option("--namespace", "-n", help="Namespace of the job; default: the file's.")
]
State = Annotated[Path, typer.Option(help="The directory that `sftjob run` kept its objects in.")]
Name = Annotated[str, typer.Argument(help="Name of the job.", show_default=False)]
OfNamespace = Annotated[str, typer.Option("--namespace", "-n", help="Namespace of the job.")]


@app.command()
def run(
    file: File,
    workspace: Annotated[
        Path | None,
        typer.Option(
            help="Directory that is the volume of spec.workspace; default: the file's.", show_default=False
        ),
    ] = None,
    state: Annotated[
        Path | None,
        typer.Option(
            help=f"Where objects and logs are kept; default: {STATE} beside the file.", show_default=False
        ),
    ] = None,
    namespace: Namespace = None,
    secret: Annotated[
        list[str] | None,
        typer.Option(help="NAME=FILE: a Secret with the KEY=VALUE lines of a file.", show_default=False),
    ] = None,
) -> None:
    """Run a job on this machine, without a cluster: the same operator over local processes.

    Ctrl-C suspends it (the ranks save a checkpoint), and the same command goes on with it. A run that was killed is
    taken up again, with the ranks that still live.
    """
    from sftjob_operator.cli import run as command

    options = command.Options(
        file=file,
        workspace=(workspace or file.parent).resolve(),
        state=(state or file.parent / STATE).resolve(),
        namespace=namespace,
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
    namespace: Namespace = None,
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
    loss_on: Annotated[
        Literal["Assistant", "LastAssistant", "AllTokens"], typer.Option(help="As data.lossOn.")
    ] = "Assistant",
    row: Annotated[int, typer.Option(help="The row that is shown, counted from 1.", min=1)] = 1,
    output: Annotated[Literal["text", "json"], typer.Option("--output", "-o", help="Form.")] = "text",
) -> None:
    """Show what a job would make of data: counts, lengths, and a row with the tokens that carry loss."""
    from sftjob_operator.cli import data as command

    options = command.Options(files, model, template, max_length, loss_on, row)
    command.inspect(options, output == "json", console())


@app.command()
def get(state: State = STATE) -> None:
    """List the jobs of this machine."""
    from sftjob_operator.cli import inspect

    inspect.get(state, console())


@app.command()
def logs(
    name: Name,
    state: State = STATE,
    namespace: OfNamespace = "default",
    tail: Annotated[int, typer.Option(help="Lines of each pod.", min=1)] = 50,
) -> None:
    """Print the last lines of a job's newest pods."""
    from sftjob_operator.cli import inspect

    inspect.logs(state, Key(namespace, name), tail, console())


@app.command()
def delete(name: Name, state: State = STATE, namespace: OfNamespace = "default") -> None:
    """Delete a job of this machine and end its pods; its files in the workspace stay."""
    from sftjob_operator.cli import delete as command

    command.delete(state, Key(namespace, name), console())


def main() -> None:
    """Entry of the console script: a CliError is a sentence on stderr and an exit code."""
    try:
        app()
    except CliError as error:
        Console(stderr=True).print(f"error: {error}", markup=False, highlight=False, soft_wrap=True)
        sys.exit(error.code)


if __name__ == "__main__":
    main()
