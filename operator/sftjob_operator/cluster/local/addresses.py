"""Addresses and names of local pods: each has a loopback address of its own, so that equal ports do not collide.

In a cluster a headless Service gives pods their DNS names; here the same names stand in one file in /etc/hosts format.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterable, Iterator
from hashlib import sha256
from pathlib import Path

from sft_trainer.config import METRICS_PORT
from sftjob_operator.cluster.base import Manifest, Ref
from sftjob_operator.cluster.local.objects import is_terminal
from sftjob_operator.cluster.local.store import Store
from sftjob_operator.cluster.local.volumes import NotYetError

_FIRST, _COUNT = (
    2,
    3000,
)  # 127.0.0.2 and up; the launcher maps as many addresses to rendezvous ports of their own


def allocate(seed: str, taken: Iterable[str]) -> str:
    """A loopback address nobody uses; where the search starts depends on `seed`, so that two users rarely meet."""
    held = set(taken)
    for address in _candidates(seed):
        if address not in held and _is_free(address):
            return address
    raise NotYetError(
        "NoAddress",
        f"no loopback address has port {METRICS_PORT} free; where only 127.0.0.1 exists (macOS) add one for each "
        "pod: sudo ifconfig lo0 alias 127.0.0.2",
        scheduled=False,
    )


def _candidates(seed: str) -> Iterator[str]:
    start = int.from_bytes(sha256(seed.encode()).digest()[:4], "big")
    for offset in range(_COUNT):
        number = _FIRST + (start + offset) % _COUNT
        if number & 255 not in (0, 255):
            yield f"127.0.{number >> 8}.{number & 255}"
    yield "127.0.0.1"


def _is_free(address: str) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, METRICS_PORT))
        except OSError as error:
            if error.errno in (errno.EADDRINUSE, errno.EADDRNOTAVAIL, errno.EACCES):
                return False
            raise
    return True


def hosts(pods: Iterable[Manifest], store: Store) -> str:
    """Names of the pods behind headless Services, as the cluster's DNS would have them."""
    lines = []
    for pod in pods:
        spec, address = pod["spec"], pod.get("status", {}).get("podIP")
        service, namespace = spec.get("subdomain"), pod["metadata"]["namespace"]
        if not service or not address or is_terminal(pod):
            continue
        if store.get(Ref("v1", "Service", namespace, service)) is None:
            continue
        name = f"{spec.get('hostname', pod['metadata']['name'])}.{service}"
        names = [name, *(f"{name}.{namespace}{end}" for end in ("", ".svc", ".svc.cluster.local"))]
        lines.append(f"{address} {' '.join(names)}\n")
    return "".join(lines)


def write_hosts(path: Path, text: str) -> None:
    """Replace the file at once, for launchers read it at any time; unchanged text is not written."""
    try:
        if path.read_text() == text:
            return
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".draft")
    draft.write_text(text)
    draft.replace(path)
