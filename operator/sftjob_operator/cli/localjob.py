"""Suspend, resume and delete on this machine, where one `sftjob run` at a time carries the jobs of a directory on.

Whoever wants to change a job that is being run asks that process, as Ctrl-C in its terminal would; otherwise this
process takes the directory's lock and does it itself.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from rich.console import Console

from sftjob_operator.api.objects import is_true
from sftjob_operator.cli import aio, delete, jobs, run, table
from sftjob_operator.cli.errors import INTERRUPTED, OK, UNKNOWN, CliError
from sftjob_operator.cli.place import Place
from sftjob_operator.cli.suspend import check_open
from sftjob_operator.cluster.base import Key, Manifest, Ref, ref_of
from sftjob_operator.cluster.local import LocalCluster
from sftjob_operator.cluster.local.errors import StateError
from sftjob_operator.cluster.local.lock import Holder, exclusive, holder
from sftjob_operator.cluster.local.volumes import claim_directory
from sftjob_operator.desired.claim import claim_name_in

LOOK_SECONDS = 0.2


def suspend(place: Place, name: str, wait: bool, console: Console) -> int:
    """The ranks save a checkpoint and stop; the exit code."""
    job, state = _job(place, name), _state(place)
    check_open(job)
    who = holder(state)
    if who is None:
        if is_true(job, "Suspended"):
            _say(console, f"{name} is suspended already")
            return OK
        return _drive(place, job, console, stop=True)
    _ask(who, place, job)
    if not wait:
        _say(console, f"{name} is asked to be suspended")
        return OK
    said = ""
    while True:
        words = table.sentence(job)
        if words != said:
            said = words
            _say(console, words)
        if holder(state) is None or holder(state) != who:
            break
        time.sleep(LOOK_SECONDS)
        job = _job(place, name)
    job = _job(place, name)
    if not is_true(job, "Suspended"):
        check_open(job)
        raise CliError(f"{name} is not suspended: {table.sentence(job)}", UNKNOWN)
    _say(console, f"{name} is suspended; {place.command('resume', name)} goes on with it")
    return OK


def resume(place: Place, name: str, wait: bool, console: Console) -> int:
    """In the foreground, as `sftjob run` of its file; the exit code is the job's."""
    job, state = _job(place, name), _state(place)
    check_open(job)
    who = holder(state)
    if who is not None:
        if who.job == f"{place.namespace}/{name}" and not job["spec"].get("suspend"):
            _say(console, f"{name} is being run already, by process {who.pid}")
            return OK
        raise CliError(f"process {who.pid} is running jobs of {state}: wait for it, or stop it with Ctrl-C")
    if not wait:
        raise CliError(
            "on this machine a job runs in the foreground: leave --no-wait out, or "
            f"nohup {place.command('resume', name)} &"
        )
    return _drive(place, job, console, stop=False)


def remove(place: Place, name: str, console: Console) -> None:
    """The job and all that belongs to it; what it left in the workspace stays."""
    delete.delete(_state(place), Key(place.namespace, name), console)


def _drive(place: Place, job: Manifest, console: Console, *, stop: bool) -> int:
    """Be its `sftjob run` ourselves, from here on."""
    state, key = _state(place), Key(place.namespace, job["metadata"]["name"])
    try:
        with exclusive(state, f"{key.namespace}/{key.name}"):
            run.log_to(state / run.LOG)
            code = aio.run(_driven(state, key, console, stop=stop))
    except StateError as error:
        raise CliError(str(error)) from None
    return OK if stop and code == INTERRUPTED else code


async def _driven(state: Path, key: Key, console: Console, *, stop: bool) -> int:
    cluster = LocalCluster(state)
    job = cluster.sftjob(key)
    if job is None:
        raise CliError(f"{key.name} was deleted")
    workspace = claim_name_in(job)
    claim = await cluster.get(Ref("v1", "PersistentVolumeClaim", key.namespace, workspace))
    directory = None if claim is None else claim_directory(claim)
    if directory is None:
        raise CliError(f"{state} has no claim {workspace}: give the `sftjob run FILE` of the beginning again")
    options = run.Options(Path(key.name), directory, state, None, ())
    try:
        if not stop:
            await cluster.patch(ref_of(job), {"spec": {"suspend": False}})
        with run.display(cluster, console) as show:
            code = await run.drive(cluster, key, show, state, stop=stop)
        return run.last_words(cluster, key, code, options, console)
    finally:
        await cluster.close()


def _ask(who: Holder, place: Place, job: Manifest) -> None:
    """Once: the second Ctrl-C would not wait for the checkpoint."""
    name = job["metadata"]["name"]
    if who.pid == 0 or who.job != f"{place.namespace}/{name}":
        raise CliError(f"process {who.pid} is running {who.job or 'another job'}, not {name}")
    if not job["spec"].get("suspend"):
        os.kill(who.pid, signal.SIGTERM)  # as Ctrl-C, and heeded in the background too


def _job(place: Place, name: str) -> Manifest:
    return aio.run(jobs.find(place, name))


def _state(place: Place) -> Path:
    assert place.state is not None
    return place.state


def _say(console: Console, words: str) -> None:
    console.print(words, markup=False, highlight=False, soft_wrap=True)
