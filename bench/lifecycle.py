"""What an installation takes, how quickly one replica follows another, and what the operator needs at rest.

The release `sftjob` of the tests' cluster is removed and installed again; SFTJobs that are there stay.
"""

from __future__ import annotations

import itertools
import re
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import audit
from rooms import SYSTEM, Kube, install, release, uninstall, until

INSTALLATIONS, ROLLOUTS = 3, 5
SELECTOR = "app.kubernetes.io/name=sftjob"


def measure(kube: Kube, report: Callable[[str, list[float]], None]) -> None:
    """Three figures; the operator is installed with one replica afterwards."""
    install(kube)  # builds and loads the image: it is there from now on
    report("helm_install_to_ready_seconds", [installation(kube) for _ in range(INSTALLATIONS)])
    report("operator_rss_without_jobs_mib", [resident(kube)])
    release(kube, replicas="2")
    released, at_work = handovers(kube)
    report("handover_lease_released_to_taken_seconds", released)
    report("handover_lease_released_to_watching_seconds", at_work)
    release(kube)


def installation(kube: Kube) -> float:
    """`helm install --wait`, into a cluster without the release and with its images."""
    uninstall(kube)
    until("its pods are gone", lambda: not kube.list("pods", SYSTEM, SELECTOR), 60)
    began = time.perf_counter()
    release(kube)
    return time.perf_counter() - began


def resident(kube: Kube) -> float:
    """MiB of the replica that leads, by its own metrics, once it has listed the SFTJobs there are."""

    def leads() -> str:
        for pod in kube.list("pods", SYSTEM, SELECTOR):
            path = f"/api/v1/namespaces/{SYSTEM}/pods/{pod['metadata']['name']}:8080/proxy/metrics"
            text = kube.kubectl("get", "--raw", path).stdout
            if re.search(r"^sftjob_operator_leader 1", text, re.MULTILINE):
                return text
        return ""

    until("a leader", leads, 60)
    time.sleep(10)  # its first lists are over
    found = re.search(r"^process_resident_memory_bytes (\S+)", leads(), re.MULTILINE)
    if found is None:
        sys.exit("the operator's metrics do not tell its memory")
    return float(found[1]) / 2**20


def handovers(kube: Kube) -> tuple[list[float], list[float]]:
    """Seconds from the last write of the Lease by one leader to the first one by the next, and until that one watches."""
    began = datetime.now(UTC)
    for _ in range(ROLLOUTS):
        kube.kubectl("rollout", "restart", "deployment/sftjob", "-n", SYSTEM, check=True)
        kube.kubectl("rollout", "status", "deployment/sftjob", "-n", SYSTEM, "--timeout=120s", check=True)
        until("only two replicas", lambda: len(kube.list("pods", SYSTEM, SELECTOR)) == 2, 60)
    time.sleep(5)  # the last of them begins to work
    taken, at_work = [], []
    for one, following in itertools.pairwise(audit.terms(audit.operator(began))):
        taken.append((following.began - one.ended).total_seconds())
        if following.at_work is not None:
            at_work.append((following.at_work - one.ended).total_seconds())
    return taken, at_work
