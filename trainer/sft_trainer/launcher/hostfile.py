"""DeepSpeed's hostfile: one `host slots=N` line per node, `#` comments, the order is the order of the ranks.

Stricter than DeepSpeed, which ignores what follows the number: what is accepted here means the same there.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from sft_trainer.config import Topology
from sft_trainer.errors import UserError

_LINE = re.compile(r"([A-Za-z0-9][A-Za-z0-9._:-]*)[ \t]+slots=([0-9]{1,5})")


class Host(NamedTuple):
    """One node: its name and how many ranks it runs."""

    name: str
    slots: int


def parse(text: str, source: str = "hostfile") -> tuple[Host, ...]:
    """The hosts of a hostfile in order; a UserError names `source` and the line that is wrong."""
    hosts: dict[str, Host] = {}
    for number, raw in enumerate(text.split("\n"), start=1):
        line = raw.strip()
        if not line or line.startswith("#"):
            continue
        match = _LINE.fullmatch(line)
        if match is None or int(match[2]) == 0:
            raise _bad(source, number, f"expected `HOST slots=N` with N at least 1, found {line[:80]!r}")
        host = Host(match[1], int(match[2]))
        if host.name in hosts:
            raise _bad(source, number, f"{host.name} stands here a second time; one line per node")
        hosts[host.name] = host
    if not hosts:
        raise UserError(
            "InvalidHostfile", f"{source} names no host; one `HOST slots=N` line per node is needed"
        )
    return tuple(hosts.values())


def check(hosts: tuple[Host, ...], topology: Topology) -> None:
    """Refuse (UserError) a hostfile that describes another gang than train.json does."""
    if len(hosts) != topology.nodes:
        raise UserError(
            "InvalidHostfile", f"the hostfile names {len(hosts)} nodes, topology.nodes is {topology.nodes}"
        )
    for host in hosts:
        if host.slots != topology.processes_per_node:
            raise UserError(
                "InvalidHostfile",
                f"{host.name} has slots={host.slots} in the hostfile, "
                f"topology.processesPerNode is {topology.processes_per_node}",
            )


def _bad(source: str, number: int, words: str) -> UserError:
    return UserError("InvalidHostfile", f"{source} line {number}: {words}")
