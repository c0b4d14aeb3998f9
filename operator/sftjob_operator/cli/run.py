"""The command `sftjob run`: checks the file, furnishes the local cluster, drives the job, says how it ended."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.live import Live

from sftjob_operator.api.names import LABEL_JOB
from sftjob_operator.api.objects import condition, is_true
from sftjob_operator.cli import aio, farewell, furnish, live, table
from sftjob_operator.cli.errors import FAILED, INTERRUPTED, OK, USAGE, CliError
from sftjob_operator.cli.load import load, parse
from sftjob_operator.cli.session import Session, Show, now
from sftjob_operator.cluster.base import Key, Manifest, Rejected, ref_of
from sftjob_operator.cluster.local import LocalCluster, admission
from sftjob_operator.cluster.local.errors import StateError
from sftjob_operator.cluster.local.lock import exclusive

LOG = "sftjob.log"


@dataclass(frozen=True)
class Options:
    """What the person said."""

    file: Path
    workspace: Path
    state: Path
    namespace: str | None
    secrets: Sequence[str]


def run(options: Options, console: Console) -> int:
    """The exit code: 0 complete, 1 failed, 130 interrupted. CliError (2) for what is wrong with the input."""
    manifest = load(options.file, options.namespace)
    manifest["spec"].pop("ttlSecondsAfterFinished", None)  # here a job stays until `sftjob delete`
    secrets = [furnish.secret(words, manifest["metadata"]["namespace"]) for words in options.secrets]
    if not options.workspace.is_dir():
        raise CliError(f"--workspace {options.workspace}: no such directory")
    try:
        with exclusive(options.state, f"{manifest['metadata']['namespace']}/{manifest['metadata']['name']}"):
            log_to(options.state / LOG)
            return aio.run(_run(options, manifest, secrets, console))
    except StateError as error:
        raise CliError(str(error)) from None
    except OSError as error:
        raise CliError(f"--state {options.state} cannot be used: {error}") from None


async def _run(options: Options, manifest: Manifest, secrets: Sequence[Manifest], console: Console) -> int:
    cluster = LocalCluster(options.state)
    key = Key(manifest["metadata"]["namespace"], manifest["metadata"]["name"])
    try:
        await _apply(cluster, key, manifest, secrets, options)
        before = cluster.sftjob(key)
        if before is not None and is_true(before, "Complete"):
            _say(console, farewell.success(before, options.workspace))
            _say(console, [farewell.again(before, options.state)])
            return OK
        with display(cluster, console) as show:
            code = await drive(cluster, key, show, options.state)
        return last_words(cluster, key, code, options, console)
    finally:
        await cluster.close()


async def drive(cluster: LocalCluster, key: Key, show: Show, state: Path, *, stop: bool = False) -> int:
    """The job to its end, or (`stop`) to its suspension.

    Where the state can be written no more (a full disk) we leave, and the ranks stay.
    """
    try:
        session = Session(cluster, key, show)
        if stop:
            session.stop()
        return await session.run()
    except OSError as error:
        on = "; the ranks run on: the same command takes them up" if cluster.has_processes() else ""
        raise CliError(f"--state {state} cannot be used any more: {error}{on}", FAILED) from None


async def _apply(
    cluster: LocalCluster, key: Key, manifest: Manifest, secrets: Sequence[Manifest], options: Options
) -> None:
    """The job and what it needs, in the cluster; CliError in the API server's words where it is refused."""
    wanted = {**manifest, "spec": {"suspend": False, **manifest["spec"]}}
    old = cluster.sftjob(key)
    try:
        job = parse(options.file, admission.admit(wanted, None))
        furnish.check_gpus(job, options.file)
        claim = furnish.claim(job, key.namespace, options.workspace)
        furnish.check_claim(claim, await cluster.get(ref_of(claim)), options.state)
        if old is not None and is_true(old, "Failed") and not _has_started(old):
            await cluster.delete(ref_of(old))  # what was wrong may be repaired outside the YAML, in the data
        for item in (wanted, claim, *secrets):
            await cluster.apply(item)
    except Rejected as error:
        hint = f"; {farewell.again(old, options.state)}" if old is not None and _has_started(old) else ""
        raise CliError(f"{options.file}: {error.message}{hint}") from None


def _has_started(job: Manifest) -> bool:
    return "startTime" in job.get("status", {})


def last_words(cluster: LocalCluster, key: Key, code: int, options: Options, console: Console) -> int:
    job = cluster.sftjob(key)
    if job is None:
        raise CliError(f"{key.name} was deleted", FAILED)
    if code == OK:
        _say(console, farewell.success(job, options.workspace))
    elif code == INTERRUPTED:
        step = job.get("status", {}).get("progress", {}).get("display")
        _say(
            console,
            [
                f"{key.name} is suspended{f' at step {step}' if step else ''}; the same command goes on with it"
            ],
        )
    elif code == USAGE:
        raise CliError(f"{options.file}: {table.sentence(job)}{_secret_hint(job)}")
    elif is_true(job, "Failed"):
        _say(console, farewell.failure(job, options.workspace, _failed_pods(cluster, key)))
        if _has_started(job):
            _say(console, [farewell.again(job, options.state)])
    else:
        raise CliError(f"{options.file}: {table.sentence(job)}", FAILED)
    return code


def _secret_hint(job: Manifest) -> str:
    is_missing = condition(job, "Running").get("reason") == "SecretMissing"
    return " (give it with --secret NAME=FILE)" if is_missing else ""


def _failed_pods(cluster: LocalCluster, key: Key) -> list[tuple[Manifest, Path]]:
    pods = cluster.pods(key.namespace, {LABEL_JOB: key.name})
    failed = [pod for pod in pods if pod["status"].get("phase") == "Failed"]
    failed.sort(key=lambda pod: int(pod["metadata"]["resourceVersion"]))
    return [(pod, cluster.kubelet.log(pod)) for pod in failed]


@contextlib.contextmanager
def display(cluster: LocalCluster, console: Console) -> Iterator[Show]:
    """A live table on a terminal, lines elsewhere."""
    if not console.is_terminal:
        lines = table.Lines()

        def print_line(job: Manifest, note: str) -> None:
            line = lines.next(job, now(), note)
            if line is not None:
                console.print(line, markup=False, highlight=False, soft_wrap=True)

        yield print_line
        return
    losses = live.Losses()
    with Live(console=console, auto_refresh=False, transient=False) as screen:

        def draw(job: Manifest, note: str) -> None:
            losses.see(job.get("status", {}).get("progress", {}))
            about = [
                item for item in cluster.events() if item["involvedObject"]["uid"] == job["metadata"]["uid"]
            ]
            more = [line for line in (losses.line(table.BAR),) if line]
            screen.update(table.screen(job, about, now(), note, more), refresh=True)

        yield draw


def _say(console: Console, lines: Iterator[str] | Sequence[str]) -> None:
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def log_to(path: Path) -> None:
    """The operator's own log; the terminal belongs to the table."""
    root = logging.getLogger()
    for old in [handler for handler in root.handlers if isinstance(handler, logging.FileHandler)]:
        root.removeHandler(old)
        old.close()
    handler = logging.FileHandler(path, encoding="utf-8")
    logging.raiseExceptions = False  # a line that cannot be written is no reason to fail
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
    root.addHandler(handler)
    root.setLevel(logging.INFO)
