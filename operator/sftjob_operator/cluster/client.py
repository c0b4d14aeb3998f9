"""`Client`: what a person's commands ask of a cluster beyond the operator's effects, with that person's rights.

Two implementations, like `Cluster`: the API server, and the local processes of another command. A command that is
written against this runs against both.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from sftjob_operator.cluster.base import Cluster, Manifest, Ref


class Duplex(Protocol):
    """A program whose stdin and stdout are in our hands, line by line."""

    async def send(self, line: str) -> None:
        """One line to its stdin."""

    def lines(self) -> AsyncIterator[str]:
        """Its stdout, until it ends."""

    def said(self) -> str:
        """The last of what it wrote to stderr."""


class Client(Cluster, Protocol):
    """Every method may raise ClusterError."""

    async def events_about(self, ref: Ref) -> Sequence[Manifest]:
        """The Events about one object, the oldest first."""

    def log(self, pod: Manifest, tail_lines: int | None, *, follow: bool) -> AsyncIterator[str]:
        """Lines of a pod's main container: the last ones (None = all), and with `follow` those to come."""

    def attached(self, pod: Manifest) -> AbstractAsyncContextManager[Duplex]:
        """Create this pod, hold its stdin and stdout, and remove it on every way out."""

    def is_carried_on(self) -> bool:
        """Whether an operator is at work on the jobs, as far as can be told at once."""

    async def close(self) -> None:
        """Drop the connections."""
