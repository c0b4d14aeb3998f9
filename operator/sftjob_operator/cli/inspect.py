"""The small commands over a local state: get and logs."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table

from sftjob_operator.api.names import LABEL_JOB
from sftjob_operator.cli import aio, table
from sftjob_operator.cli.errors import CliError
from sftjob_operator.cli.session import now
from sftjob_operator.cluster.base import Key, Manifest, ref_of
from sftjob_operator.cluster.local import LocalCluster
from sftjob_operator.cluster.local.errors import StateError


def get(state: Path, console: Console) -> None:
    """All jobs, as `kubectl get sftjobs` shows them."""
    cluster = opened(state)
    shown = Table(box=None, pad_edge=False, header_style="bold")
    for column in table.COLUMNS:
        shown.add_column(column, no_wrap=True)
    for key in cluster.keys():
        shown.add_row(*table.row(job_of(cluster, key), now()))
    console.print(shown)


def logs(state: Path, key: Key, tail: int, console: Console) -> None:
    """The newest pods' last lines."""
    cluster = opened(state)
    job_of(cluster, key)
    pods = cluster.pods(key.namespace, {LABEL_JOB: key.name})
    if not pods:
        raise CliError(
            f"{key.name} has no pods; logs of earlier attempts lie in jobs/{key.name}/logs of the workspace"
        )
    newest = max(pods, key=lambda pod: str(pod["metadata"]["creationTimestamp"]))
    owner = newest["metadata"]["ownerReferences"][0]["uid"]
    for pod in pods:
        if pod["metadata"]["ownerReferences"][0]["uid"] == owner:
            text = aio.run(cluster.read_log(ref_of(pod), tail))
            for line in text.splitlines():
                console.print(
                    f"[{pod['metadata']['name']}] {line}", markup=False, highlight=False, soft_wrap=True
                )


def opened(state: Path) -> LocalCluster:
    """The cluster of a state directory that is there."""
    if not state.is_dir():
        raise CliError(f"{state}: no local jobs here; --state names the directory that `sftjob run` used")
    try:
        return LocalCluster(state)
    except StateError as error:
        raise CliError(str(error)) from None


def job_of(cluster: LocalCluster, key: Key) -> Manifest:
    """The job; CliError where there is none."""
    job = cluster.sftjob(key)
    if job is None:
        known = ", ".join(sorted(other.name for other in cluster.keys())) or "none"
        raise CliError(f"there is no job {key.name} in namespace {key.namespace}; there are: {known}")
    return job
