"""`make bench`: the figures of docs/benchmarks.md that need a cluster; one JSON line each.

Uses the cluster of `make cluster`, and installs the operator in it.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from bench import lifecycle  # noqa: E402

from devcluster import binaries, cluster  # noqa: E402 - after the path to it
from rooms import Kube  # noqa: E402

NAMESPACE = "bench"
REPETITIONS = 10


def main() -> int:
    kubeconfig = cluster.up()

    def kubectl(*words: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
        command = [str(binaries.kubectl()), "--kubeconfig", str(kubeconfig), *words]
        return subprocess.run(command, input=stdin, capture_output=True, text=True)

    lifecycle.measure(Kube(kubeconfig, binaries.tools()), report)
    kubectl("create", "namespace", NAMESPACE)
    kubectl("apply", "-f", "-", stdin=json.dumps(claim()))
    try:
        report(
            "apply_to_first_child_seconds", [first_child(kubectl, number) for number in range(REPETITIONS)]
        )
        report("invalid_spec_refused_seconds", [refused(kubectl) for _ in range(REPETITIONS)])
    finally:
        kubectl("delete", "namespace", NAMESPACE, "--wait=false")
    return 0


def first_child(kubectl, number: int) -> float:
    """From the SFTJob's creation to its first child's, both by the API server's audit log."""
    name = f"bench-{number}"
    kubectl("apply", "-f", "-", stdin=json.dumps(sftjob(name)))
    selector = f"sftjob.dev/job-name={name}"
    for _ in range(100):
        if kubectl("get", "jobs,configmaps", "-n", NAMESPACE, "-l", selector, "-o", "name").stdout.strip():
            break
        time.sleep(0.1)
    else:
        sys.exit(f"{name}: no child within 10 s; is the operator running?")
    found = audit_times(name)
    kubectl("delete", "sftjob", name, "-n", NAMESPACE, "--wait=false")
    return found


def audit_times(name: str) -> float:
    from datetime import datetime

    from devcluster import controlplane

    created: dict[str, datetime] = {}
    for line in controlplane.audit_log().read_text().splitlines():
        if f'"{NAMESPACE}"' not in line or name not in line:
            continue
        event = json.loads(line)
        reference = event.get("objectRef", {})
        if event.get("stage") != "ResponseComplete" or event["verb"] not in ("create", "patch"):
            continue
        if reference.get("namespace") == NAMESPACE and str(reference.get("name", "")).startswith(name):
            moment = datetime.fromisoformat(event["stageTimestamp"].replace("Z", "+00:00"))
            created.setdefault("job" if reference["resource"] == "sftjobs" else "child", moment)
    if len(created) < 2:
        sys.exit(f"{name}: the audit log does not show both, the SFTJob and its child: {created}")
    return (created["child"] - created["job"]).total_seconds()


def refused(kubectl) -> float:
    """A spec that breaks a CEL rule: from the request to the refusal, kubectl's own start included."""
    bad = sftjob("bad")
    bad["spec"]["model"]["uri"] = "hf://a/b"
    began = time.perf_counter()
    done = kubectl("create", "-f", "-", stdin=json.dumps(bad))
    elapsed = time.perf_counter() - began
    if done.returncode == 0 or "exactly one of" not in done.stderr:
        sys.exit(f"not refused as expected: {done.stderr}")
    return elapsed


def sftjob(name: str) -> dict:
    spec = {
        "model": {"path": "models/none"},
        "data": {"train": [{"path": "none.jsonl"}]},
        "workers": {"gpusPerNode": 0, "image": "sftjob.local/none:0", "imagePullPolicy": "Never"},
        "workspace": {"claimName": "bench"},
    }
    metadata = {"name": name, "namespace": NAMESPACE}
    return {"apiVersion": "sftjob.dev/v1alpha1", "kind": "SFTJob", "metadata": metadata, "spec": spec}


def claim() -> dict:
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "bench", "namespace": NAMESPACE},
        "spec": {
            "accessModes": ["ReadWriteMany"],
            "storageClassName": "none",
            "resources": {"requests": {"storage": "1Gi"}},
        },
    }


def report(name: str, values: list[float]) -> None:
    figures = {"min": min(values), "median": statistics.median(values), "max": max(values)}
    print(
        json.dumps(
            {"figure": name, "runs": len(values), **{key: round(value, 3) for key, value in figures.items()}}
        )
    )


if __name__ == "__main__":
    sys.exit(main())
