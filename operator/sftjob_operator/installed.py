"""`python -m sftjob_operator.installed HOST PORT`: whether an installation works, asked from outside of it.

`helm test` runs it in a pod without rights and without a token: it finds the operator's pods by the addresses of a
name, and asks them what anybody may ask. Only the standard library, so that it starts at once.
"""

from __future__ import annotations

import socket
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from http.client import HTTPException

SECONDS = 60.0
LEADER, WATCHING = "sftjob_operator_leader", "sftjob_operator_watching"


@dataclass(frozen=True)
class Replica:
    """What a pod of the operator says."""

    address: str
    trouble: str | None
    """Why it is not healthy."""
    leads: bool = False
    watches: bool = False


def objection(replicas: Sequence[Replica]) -> str | None:
    """The first thing that is not as it should be, with where to look; None when all is well."""
    if not replicas:
        return "no pod of the operator is there: see the events of its Deployment and ReplicaSet"
    for replica in replicas:
        if replica.trouble:
            return f"{replica.address} is not healthy: {replica.trouble}"
    leaders = [replica for replica in replicas if replica.leads]
    if len(leaders) != 1:
        return f"{len(leaders)} of {len(replicas)} replicas lead, and one should: see the log for the Lease"
    if not leaders[0].watches:
        return (
            f"{leaders[0].address} leads but does not watch SFTJobs: is the CustomResourceDefinition "
            "installed (crds.install, or kubectl apply --server-side -f crds/)?"
        )
    return None


def ask(address: str, port: int) -> Replica:
    """The state of the pod at this address, by /healthz, /readyz and /metrics."""
    try:
        for path in ("/healthz", "/readyz"):
            _get(address, port, path)
        series = dict(
            line.rsplit(" ", 1) for line in _get(address, port, "/metrics").splitlines() if " " in line
        )
    except urllib.error.HTTPError as error:
        with error:
            return Replica(address, error.read(500).decode(errors="replace") or str(error))
    except (OSError, HTTPException) as error:
        return Replica(address, str(error))
    return Replica(address, None, *(float(series.get(name, 0)) == 1 for name in (LEADER, WATCHING)))


def addresses(host: str, port: int) -> list[str]:
    """Whom a name stands for; nobody while it does not resolve."""
    try:
        return sorted({str(found[4][0]) for found in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)})
    except socket.gaierror:
        return []


def main(words: Sequence[str], seconds: float = SECONDS, sleep: Callable[[float], None] = time.sleep) -> int:
    """0 once all is well, 1 when it is not within the time, 2 for wrong words."""
    if len(words) != 2 or not words[1].isdigit():
        sys.stderr.write("usage: python -m sftjob_operator.installed HOST PORT\n")
        return 2
    host, port, deadline = words[0], int(words[1]), time.monotonic() + seconds
    while True:
        replicas = [ask(address, port) for address in addresses(host, port)]
        trouble = objection(replicas)
        if trouble is None:
            leader = next(replica.address for replica in replicas if replica.leads)
            sys.stdout.write(f"{len(replicas)} healthy; {leader} leads and watches SFTJobs\n")
            return 0
        if time.monotonic() >= deadline:
            sys.stderr.write(f"{trouble}\n")
            return 1
        sleep(1.0)


def _get(address: str, port: int, path: str) -> str:
    host = f"[{address}]" if ":" in address else address
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a proxy is for the outside
    with opener.open(f"http://{host}:{port}{path}", timeout=5) as answer:
        return str(answer.read(4 << 20).decode(errors="replace"))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
