"""A real Kubernetes with two nodes, the operator in it from its image and chart, and rooms: namespaces with a volume."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
CHART = ROOT / "charts" / "sftjob"
SYSTEM = "sftjob-system"
ONE_AT_A_TIME = "one-at-a-time"
"""The namespace whose quota is one SFTJob; no other has any."""


@dataclass(frozen=True)
class Kube:
    """kubectl and helm against the cluster of the tests."""

    kubeconfig: Path
    tools: Path

    def run(
        self, program: str, *words: str, stdin: str | None = None, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "KUBECONFIG": str(self.kubeconfig)}
        done = subprocess.run(
            [str(self.tools / program), *words],
            input=stdin,
            capture_output=True,
            text=True,
            env=environment,
            timeout=300,
        )
        if check and done.returncode:
            raise AssertionError(f"{program} {' '.join(words)}: {done.stderr}{done.stdout}")
        return done

    def kubectl(
        self, *words: str, stdin: str | None = None, check: bool = False
    ) -> subprocess.CompletedProcess[str]:
        return self.run("kubectl", *words, stdin=stdin, check=check)

    def apply(self, *manifests: dict[str, Any]) -> None:
        self.kubectl(
            "apply",
            "-f",
            "-",
            stdin=json.dumps({"apiVersion": "v1", "kind": "List", "items": list(manifests)}),
            check=True,
        )

    def get(self, kind: str, name: str, namespace: str) -> dict[str, Any] | None:
        done = self.kubectl(
            "get", kind, name, "-n", namespace, "-o", "json", "--ignore-not-found", check=True
        )
        return json.loads(done.stdout) if done.stdout.strip() else None

    def list(self, kind: str, namespace: str, selector: str = "") -> list[dict[str, Any]]:
        done = self.kubectl("get", kind, "-n", namespace, "-l", selector, "-o", "json", check=True)
        return json.loads(done.stdout)["items"]


def until(
    what: str,
    look: Callable[[], Any],
    seconds: float = 120,
    every: float = 0.5,
    diagnose: Callable[[], str] = str,
) -> Any:
    """The first true value of `look`; AssertionError with a diagnosis when it does not come."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        value = look()
        if value:
            return value
        time.sleep(every)
    raise AssertionError(f"{what}: not within {seconds:.0f} s\n{diagnose()}")


def connect() -> Kube:
    """The cluster of `make cluster`, started if need be."""
    from devcluster import binaries, cluster

    return Kube(cluster.up(), binaries.tools())


def served(kube: Kube, *definitions: str) -> None:
    """Wait until the API server serves these kinds; `kubectl wait` ends with an error where a definition is so new
    that it has no condition.
    """
    words = ("--for=condition=Established", *(f"crd/{name}" for name in definitions), "--timeout=30s")
    until(f"{definitions} served", lambda: kube.kubectl("wait", *words).returncode == 0, 30)


def install(kube: Kube, chart: Path = CHART, **values: str) -> None:
    """Build the operator's image, load it into the nodes and install the chart, or upgrade it, with these values."""
    sys.path.insert(0, str(ROOT / "tests" / "images"))
    import build  # tests/images/build.py

    from devcluster import images

    images.load(build.operator())
    kube.apply(restricted_namespace(SYSTEM))
    release(kube, chart, **values)


def release(kube: Kube, chart: Path = CHART, **values: str) -> None:
    """Helm's part of an installation; it returns when the operator is ready."""
    from devcluster import images

    image = {"image.repository": "sftjob.local/operator", "image.tag": "dev", "image.pullPolicy": "Never"}
    quota = {f"quotas.namespaces.{ONE_AT_A_TIME}.jobs": "1"}
    values = {**image, **quota, "trainer.image": images.THIN, **values}
    settings = [word for key, value in values.items() for word in ("--set", f"{key}={value}")]
    command = (
        "upgrade",
        "--install",
        "sftjob",
        str(chart),
        "--namespace",
        SYSTEM,
        "--wait",
        "--timeout=180s",
    )
    done = kube.run("helm", *command, *settings, check=False)
    assert done.returncode == 0, done.stderr + kube.kubectl("describe", "pods", "-n", SYSTEM).stdout[-4000:]


def uninstall(kube: Kube) -> None:
    """Remove the release; the CRD and with it every SFTJob stay, as the chart's default has it."""
    kube.run("helm", "uninstall", "sftjob", "--namespace", SYSTEM, "--wait", check=False)


@contextlib.contextmanager
def resting_operator(kube: Kube) -> Iterator[None]:
    """An operator that an earlier test installed leaves objects alone meanwhile."""
    installed = kube.get("deployment", "sftjob", SYSTEM)
    if installed:
        kube.kubectl("scale", "deployment/sftjob", "-n", SYSTEM, "--replicas=0")
        selector = "app.kubernetes.io/name=sftjob"
        kube.kubectl("wait", "--for=delete", "pod", "-l", selector, "-n", SYSTEM, "--timeout=60s")
    yield
    if installed:
        replicas = installed["spec"]["replicas"]
        kube.kubectl("scale", "deployment/sftjob", "-n", SYSTEM, f"--replicas={replicas}")
        kube.kubectl("rollout", "status", "deployment/sftjob", "-n", SYSTEM, "--timeout=60s")


@dataclass(frozen=True)
class Room:
    """A namespace with a shared volume, where pods see this machine's Python environment."""

    kube: Kube
    namespace: str
    workspace: Path
    overlay: dict[str, Any]

    def sftjob(self, name: str, spec: dict[str, Any]) -> dict[str, Any]:
        """An SFTJob of this namespace whose pods run the thin image."""
        spec = json.loads(json.dumps(spec))
        path = f"{ROOT}/.venv/bin:/usr/bin:/bin"
        common = {
            "env": [{"name": "PATH", "value": path}, {"name": "OMP_NUM_THREADS", "value": "1"}],
            "podTemplate": self.overlay,
        }
        spec["workers"] = {
            "nodes": 2,
            "gpusPerNode": 0,
            "imagePullPolicy": "Never",
            **common,
            **spec.get("workers", {}),
        }
        spec["prepare"] = {**common, **spec.get("prepare", {})}
        spec.setdefault("workspace", {"claimName": "workspace"})
        metadata = {"name": name, "namespace": self.namespace}
        return {"apiVersion": "sftjob.dev/v1alpha1", "kind": "SFTJob", "metadata": metadata, "spec": spec}

    def apply(self, name: str, spec: dict[str, Any]) -> None:
        self.kube.apply(self.sftjob(name, spec))

    def suspend(self, name: str, value: bool) -> None:
        """Set spec.suspend as a user would."""
        patch = json.dumps({"spec": {"suspend": value}})
        self.kube.kubectl(
            "patch", "sftjob", name, "-n", self.namespace, "--type=merge", "-p", patch, check=True
        )

    def job(self, name: str) -> dict[str, Any]:
        found = self.kube.get("sftjob", name, self.namespace)
        assert found is not None, f"SFTJob {name} is gone"
        return found

    def condition(self, name: str, type_: str) -> dict[str, Any]:
        conditions = self.job(name).get("status", {}).get("conditions", [])
        return next((one for one in conditions if one["type"] == type_), {})

    def wait(self, name: str, type_: str, status: str = "True", seconds: float = 300) -> dict[str, Any]:
        """The condition once it has that status; fails at once when the job failed instead."""

        def look() -> Any:
            found = self.condition(name, type_)
            if found.get("status") == status:
                return found
            failed = self.condition(name, "Failed")
            assert type_ == "Failed" or failed.get("status") != "True", f"{failed}\n{self.diagnose(name)}"
            return None

        return until(f"{name}: {type_}={status}", look, seconds, diagnose=lambda: self.diagnose(name))

    def waits_for(self, name: str, reason: str, seconds: float = 60) -> dict[str, Any]:
        """The condition Running once it says why not, with this reason."""

        def look() -> Any:
            found = self.condition(name, "Running")
            return found if found.get("reason") == reason else None

        return until(f"{name}: {reason}", look, seconds, diagnose=lambda: self.diagnose(name))

    def pods(self, selector: str) -> list[dict[str, Any]]:
        return self.kube.list("pods", self.namespace, selector)

    def diagnose(self, name: str) -> str:
        status = json.dumps(self.job(name).get("status", {}), indent=1)[-4000:]
        pods = self.kube.kubectl("get", "pods,jobs,events", "-n", self.namespace, "-o", "wide").stdout[-5000:]
        logs = self.kube.kubectl(
            "logs", "-n", self.namespace, "-l", f"sftjob.dev/job-name={name}", "--tail=30", "--prefix"
        ).stdout[-5000:]
        operator = self.kube.kubectl("logs", "-n", SYSTEM, "deploy/sftjob", "--tail=20").stdout[-3000:]
        return f"status: {status}\n{pods}\n{logs}\noperator: {operator}"


def restricted_namespace(name: str) -> dict[str, Any]:
    """One that takes only pods of the `restricted` Pod Security Standard, and tells of every other in the audit log."""
    modes = ("enforce", "audit", "warn")
    labels = {f"pod-security.kubernetes.io/{mode}": "restricted" for mode in modes}
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}


def make_room(kube: Kube, name: str, directory: Path) -> Iterator[Room]:
    from devcluster import volumes

    name = "".join(letter if letter.isalnum() else "-" for letter in name).strip("-")
    remove_room(kube, name, wait=True)  # of a run that was cut off
    kube.apply(restricted_namespace(name))
    directory.chmod(0o755)
    for parent in directory.parents[:2]:
        parent.chmod(0o755)
    workspace = volumes.workspace(directory / "workspace")
    for folder in ("models", "datasets"):
        volumes.workspace(workspace / folder)
    kube.apply(*volumes.volume("workspace", workspace, name), *volumes.thin_claims(name))
    mounted, mounts = volumes.thin_volumes(claims=True)
    overlay = {"spec": {"volumes": mounted, "containers": [{"name": "trainer", "volumeMounts": mounts}]}}
    try:
        yield Room(kube, name, workspace, overlay)
    finally:
        remove_room(kube, name, wait=False)


def remove_room(kube: Kube, name: str, wait: bool) -> None:
    """Delete the namespace and its volumes; the directory on the host stays."""
    from devcluster import volumes

    kube.kubectl("delete", "namespace", name, "--ignore-not-found", f"--wait={str(wait).lower()}")
    claimed = [f"{name}-{one}" for one in ("workspace", *volumes.environment())]
    kube.kubectl("delete", "pv", *claimed, "--ignore-not-found", f"--wait={str(wait).lower()}")
