"""Finds rank 0's pod by its name, the only name a launcher ever looks up.

Were every node to wait for every other one, a gang of N would ask DNS N x N times. Names appear about a
second after the pods do, as NXDOMAIN or as a temporary failure depending on the search domains: both are
waited out.

What DNS says now may be the address of a pod that is gone: after a suspension the same name has another one, and
name servers answer from their caches. So the ranks get the name, and ask anew at every try.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable
from pathlib import Path

from sft_trainer.errors import Interrupted, PeerLost

logger = logging.getLogger(__name__)

_LOG_EVERY_SECONDS = 5.0

Lookup = Callable[[str], str]


def parse_hosts(text: str) -> dict[str, str]:
    """Name to address, of a file in /etc/hosts format; the first line that has a name decides."""
    addresses: dict[str, str] = {}
    for line in text.splitlines():
        fields = line.partition("#")[0].split()
        for name in fields[1:]:
            addresses.setdefault(name, fields[0])
    return addresses


def lookup(hosts_file: Path | None, dns: Lookup | None = None) -> Lookup:
    """What a rank can connect to: the address in `hosts_file`, which only we know, or a name that DNS has.

    The file is read anew each time: it may still grow.
    """
    ask = dns or _dns

    def find(name: str) -> str:
        if hosts_file is not None and hosts_file.is_file():
            known = parse_hosts(hosts_file.read_text(encoding="utf-8"))
            if name in known:
                return known[name]
        ask(name)
        return name

    return find


def _dns(name: str) -> str:
    return str(socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)[0][4][0])


def wait_for(
    name: str, find: Lookup, *, deadline_seconds: float, clock: Callable[[], float], pause: Callable[[], bool]
) -> str:
    """What `find` says of `name`, asked again after every `pause` (which returns False to stop the wait).

    Raises PeerLost when the name does not appear within `deadline_seconds`, Interrupted when told to stop.
    """
    start = clock()
    next_log = start
    while True:
        try:
            return find(name)
        except (OSError, UnicodeError) as error:  # no such name yet, or a file that is being replaced
            reason = str(error)
        waited = clock() - start
        if waited >= deadline_seconds:
            raise PeerLost(f"the name of rank 0's pod, {name}, did not appear in {waited:.0f} s: {reason}")
        if clock() >= next_log:
            logger.info("waiting for the name of rank 0's pod, %s, for %.0f s: %s", name, waited, reason)
            next_log = clock() + _LOG_EVERY_SECONDS
        if not pause():
            raise Interrupted(f"stopped while waiting for the name of rank 0's pod, {name}")
