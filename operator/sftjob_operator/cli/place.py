"""Where the jobs are that a command is about: a cluster, or a state directory of this machine.

The rule, in this order: --state or --local is this machine, --context or --kubeconfig is a cluster; `kubectl sftjob`
is the cluster; `sftjob` is this machine where the current directory holds .sftjob/state, else the cluster.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from pathlib import Path

from sftjob_operator.cli.errors import UNKNOWN, CliError
from sftjob_operator.cluster.base import ClusterError, NotFound, Rejected
from sftjob_operator.cluster.client import Client
from sftjob_operator.cluster.connection import Connection, NoCluster, connect
from sftjob_operator.cluster.local.client import LocalClient
from sftjob_operator.cluster.local.errors import StateError
from sftjob_operator.cluster.person import KubernetesClient

STATE = Path(".sftjob") / "state"
PLUGIN = ("kubectl-", "kubectl_complete-")
"""The plugin itself, and what kubectl asks for its completion."""


@dataclass(frozen=True)
class Where:
    """What the person said of the place."""

    namespace: str | None = None
    context: str | None = None
    kubeconfig: str | None = None
    local: bool = False
    state: Path | None = None

    @property
    def is_local(self) -> bool:
        """By the rule above; CliError for both at once."""
        here, there = self.local or self.state is not None, bool(self.context or self.kubeconfig)
        if here and there:
            raise CliError(
                "--local and --state are for this machine, --context and --kubeconfig for a cluster: give one kind"
            )
        return here or (not (there or is_plugin()) and STATE.is_dir())


@dataclass(frozen=True)
class Place:
    """Where they are, opened."""

    client: Client
    namespace: str
    words: str
    """For a person: `this machine (.sftjob/state)`, `context prod, namespace team-a`."""
    flags: str
    """What has to follow the next command so that it finds the same place."""
    state: Path | None = None
    connection: Connection | None = None

    def command(self, verb: str, name: str = "") -> str:
        """The next command to give."""
        words = ("kubectl sftjob" if is_plugin() else "sftjob", verb, name)
        return " ".join(word for word in words if word) + self.flags

    def at(self, namespace: str) -> Place:
        """The same place, in this namespace."""
        if namespace == self.namespace:
            return self
        head = self.words.partition(", namespace")[0]
        words, flags = f"{head}, namespace {namespace}", f"{self.flags} -n {namespace}"
        return replace(self, namespace=namespace, words=words, flags=flags)

    def kubectl(self, words: str) -> str:
        """The same with kubectl."""
        return f"kubectl {words}{self.flags}"


def is_plugin() -> bool:
    """Whether we were called as `kubectl sftjob`."""
    return Path(sys.argv[0]).name.startswith(PLUGIN)


@contextlib.asynccontextmanager
async def opened(where: Where) -> AsyncIterator[Place]:
    """The place; whatever the cluster says against it leaves as a CliError."""
    place = local(where) if where.is_local else await _remote(where)
    try:
        yield place
    except StateError as error:
        raise CliError(str(error)) from None
    except ClusterError as error:
        raise CliError(_refusal(error, place), UNKNOWN) from None
    finally:
        await place.client.close()


def local(where: Where) -> Place:
    """This machine's; CliError where no job has ever run."""
    state = where.state or STATE
    if not state.is_dir():
        raise CliError(f"{state}: no local jobs here; --state names the directory that `sftjob run` used")
    try:
        client = LocalClient(state)
    except StateError as error:
        raise CliError(str(error)) from None
    namespace = where.namespace or "default"
    flags = f" --state {where.state}" if where.state else " --local" if where.local or is_plugin() else ""
    return Place(client, namespace, f"this machine ({state})", flags + _flag("-n", where.namespace), state)


async def _remote(where: Where) -> Place:
    try:
        connection = await connect(where.kubeconfig, where.context)
    except NoCluster as error:
        if where.context or where.kubeconfig or is_plugin():
            raise CliError(str(error)) from None
        raise CliError(
            f"no jobs to be found: {STATE} is not in this directory (cd to it, or --state DIR), and {error}"
        ) from None
    namespace = where.namespace or connection.namespace
    flags = _flag("--kubeconfig", where.kubeconfig) + _flag("--context", where.context)
    name = f"context {connection.context}" if connection.context else connection.server
    return Place(
        KubernetesClient(connection),
        namespace,
        f"{name}, namespace {namespace}",
        flags + _flag("-n", where.namespace),
        connection=connection,
    )


def _flag(name: str, value: str | None) -> str:
    return f" {name} {value}" if value else ""


def _refusal(error: ClusterError, place: Place) -> str:
    if isinstance(error, Rejected) and error.code == 403:
        return f"you may not do that in {place.words}: {error.message}; {place.command('doctor')} lists your rights"
    if isinstance(error, NotFound) and not error.message.startswith("namespaces "):
        return (
            f"{place.words} does not know SFTJobs: {error.message}: install the operator's chart, "
            f"which brings the CRD; {place.command('doctor')} checks the cluster"
        )
    if isinstance(error, Rejected):
        return f"{place.words} refuses it: {error.message}"
    words = str(error)
    if words.startswith("Unauthorized"):
        return f"{place.words} does not know you: {words}: sign on again, or take another --context"
    if place.connection is not None and words.startswith(("GET ", "POST ", "PATCH ", "DELETE ")):
        return f"{place.words} does not answer at {place.connection.server}: {words.partition(': ')[2]}"
    return words


Progress = Callable[[str], None]
"""Told a line about what is being waited for."""
