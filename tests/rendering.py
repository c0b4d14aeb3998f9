"""The chart as helm renders it, once per set of values and test run."""

from __future__ import annotations

import functools
import json
import subprocess
from pathlib import Path
from typing import Any

import yaml

from machine import skip_or_fail

CHART = Path(__file__).resolve().parents[1] / "charts" / "sftjob"
VALUES = yaml.safe_load((CHART / "values.yaml").read_text())
SCHEMA = json.loads((CHART / "values.schema.json").read_text())

SYSTEM = "sftjob-system"
NAMESPACES = ("--set", "rbac.scope=namespaces", "--set", "rbac.namespaces={team-a,team-b}")
POLICIES = ("--set", "networkPolicy.enabled=true")
MONITORING_APIS = (
    "--api-versions",
    "monitoring.coreos.com/v1/PodMonitor,monitoring.coreos.com/v1/PrometheusRule",
)

Manifest = dict[str, Any]


@functools.cache
def helm() -> Path:
    """The pinned helm."""
    from devcluster import binaries
    from devcluster.processes import CommandError

    try:
        found = binaries.helm()
        subprocess.run([found, "version"], check=True, capture_output=True)
    except (CommandError, OSError, subprocess.CalledProcessError) as error:
        skip_or_fail(f"helm cannot be had here: {error}")
    return found


def run(*words: str, release: str = "sftjob") -> subprocess.CompletedProcess[str]:
    """`helm template` with further words, whatever comes of it."""
    command = [str(helm()), "template", release, str(CHART), "--namespace", SYSTEM, *words]
    return subprocess.run(command, capture_output=True, text=True)


@functools.cache
def text(*words: str, release: str = "sftjob") -> str:
    """What helm prints for these values."""
    done = run(*words, release=release)
    assert done.returncode == 0, done.stderr
    return done.stdout


@functools.cache
def render(*words: str, release: str = "sftjob") -> tuple[Manifest, ...]:
    """Its manifests, hooks among them; not to be changed, for they are shared."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return tuple(one for one in yaml.load_all(text(*words, release=release), loader) if one)


def values(**sections: Any) -> tuple[str, ...]:
    """Words that set values of any shape; a dot in a name is written as __."""
    return tuple(
        word
        for name, value in sections.items()
        for word in ("--set-json", f"{name.replace('__', '.')}={json.dumps(value)}")
    )


def refusal(*words: str) -> str:
    """What helm says against these values."""
    done = run(*words)
    assert done.returncode != 0, "helm takes them"
    return done.stderr


def of_kind(manifests: tuple[Manifest, ...], kind: str) -> list[Manifest]:
    """Those of a kind, in order."""
    return [manifest for manifest in manifests if manifest["kind"] == kind]


def one(manifests: tuple[Manifest, ...], kind: str, name: str, namespace: str | None = None) -> Manifest:
    """The one of that kind, name and namespace."""
    (found,) = (
        manifest
        for manifest in of_kind(manifests, kind)
        if (manifest["metadata"]["name"], manifest["metadata"].get("namespace", namespace))
        == (name, namespace or manifest["metadata"].get("namespace"))
    )
    return found


def operator_pod(manifests: tuple[Manifest, ...]) -> Manifest:
    """The pod template of the Deployment."""
    (deployment,) = of_kind(manifests, "Deployment")
    return deployment["spec"]["template"]


def environment(manifests: tuple[Manifest, ...]) -> dict[str, str]:
    """What the operator is told."""
    (container,) = operator_pod(manifests)["spec"]["containers"]
    return {variable["name"]: variable.get("value", "from the pod") for variable in container["env"]}
