"""The chart's PodMonitors and PrometheusRule, as the definitions of Prometheus' operator take them."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from rooms import CHART, Kube, served

pytestmark = pytest.mark.cluster
MODULE = "github.com/prometheus-operator/prometheus-operator@v0.85.0"
SUM = "h1:M5xLCLEoaW2IJfnuCwFzzpL+jSVQu3KGT84Pye+fW8s="
KINDS = {"podmonitors": "PodMonitor", "prometheusrules": "PrometheusRule"}


@pytest.fixture(scope="module")
def prometheus_kinds(kube: Kube) -> Iterator[None]:
    """The definitions, from the Go module that they are released in."""
    from devcluster import binaries

    command = [binaries.go(), "mod", "download", "-json", MODULE]
    module = json.loads(subprocess.run(command, check=True, capture_output=True, text=True, cwd="/").stdout)
    assert module["Sum"] == SUM
    folder = Path(module["Dir"]) / "example" / "prometheus-operator-crd"
    files = [
        word for plural in KINDS for word in ("-f", str(folder / f"monitoring.coreos.com_{plural}.yaml"))
    ]
    kube.kubectl("apply", "--server-side", *files, check=True)
    served(kube, *(f"{plural}.monitoring.coreos.com" for plural in KINDS))
    yield
    kube.kubectl("delete", *files, "--wait=false", check=True)


@pytest.mark.parametrize(
    "scope", [(), ("rbac.scope=namespaces", "rbac.namespaces={team-a,team-b}")], ids=["cluster", "namespaces"]
)
def test_the_api_server_takes_the_monitoring_of_the_chart(
    kube: Kube, prometheus_kinds: None, scope: tuple[str, ...]
):
    on = ("monitoring.podMonitors.enabled=true", "monitoring.rules.enabled=true", *scope)
    settings = [word for value in on for word in ("--set", value)]
    known = [
        word for kind in KINDS.values() for word in ("--api-versions", f"monitoring.coreos.com/v1/{kind}")
    ]
    text = kube.run(
        "helm", "template", "sftjob", str(CHART), "--namespace", "default", *settings, *known
    ).stdout
    found = [one for one in yaml.safe_load_all(text) if one and one["kind"] in KINDS.values()]
    assert {one["kind"] for one in found} == set(KINDS.values())
    strictly = ("apply", "--dry-run=server", "--validate=strict", "-f", "-")
    done = kube.kubectl(*strictly, stdin=json.dumps({"apiVersion": "v1", "kind": "List", "items": found}))
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
