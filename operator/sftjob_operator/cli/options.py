"""The options that say where jobs are, the same for every command that needs them."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from sftjob_operator.cli import completion
from sftjob_operator.cli.place import STATE, Where

PANEL = "Where"

Name = Annotated[
    str, typer.Argument(help="Name of the job.", show_default=False, autocompletion=completion.job_names)
]
Output = Annotated[Literal["text", "json"], typer.Option("--output", "-o", help="Form.")]
NoWait = Annotated[bool, typer.Option("--no-wait", help="Say it, and do not wait for it.")]

_WHERE = {
    "namespace": Annotated[
        str | None,
        typer.Option(
            "--namespace",
            "-n",
            help="Namespace; default: the context's.",
            rich_help_panel=PANEL,
            show_default=False,
        ),
    ],
    "context": Annotated[
        str | None,
        typer.Option(help="A context of the kubeconfig.", rich_help_panel=PANEL, show_default=False),
    ],
    "kubeconfig": Annotated[
        str | None,
        typer.Option(help="Its path; default: KUBECONFIG.", rich_help_panel=PANEL, show_default=False),
    ],
    "local": Annotated[
        bool, typer.Option("--local", help=f"This machine's jobs, in {STATE}.", rich_help_panel=PANEL)
    ],
    "state": Annotated[
        Path | None,
        typer.Option(
            help="This machine's jobs, in the directory that `sftjob run` kept its objects in.",
            rich_help_panel=PANEL,
            show_default=False,
        ),
    ],
}


def located(command: Callable[..., Any]) -> Callable[..., Any]:
    """A command whose first parameter `where` comes of the options above."""

    @functools.wraps(command)
    def with_options(**given: Any) -> Any:
        where = Where(**{name: given.pop(name) for name in _WHERE})
        return command(where, **given)

    own = list(inspect.signature(command, eval_str=True).parameters.values())[1:]
    keyword = inspect.Parameter.KEYWORD_ONLY
    more = [
        inspect.Parameter(name, keyword, default=False if name == "local" else None, annotation=kind)
        for name, kind in _WHERE.items()
    ]
    parameters = [each.replace(kind=keyword) for each in own] + more
    signature = inspect.Signature(parameters)
    with_options.__signature__ = signature  # type: ignore[attr-defined]
    with_options.__annotations__ = {each.name: each.annotation for each in parameters}
    return with_options
