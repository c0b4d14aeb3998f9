"""What is rendered is valid for every Kubernetes that the chart supports, and restricted by its own standard."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from rendering import (
    CHART,
    MONITORING_APIS,
    NAMESPACES,
    POLICIES,
    SYSTEM,
    Manifest,
    environment,
    helm,
    of_kind,
    one,
    operator_pod,
    refusal,
    render,
    values,
)
from sftjob_operator.desired.podsecurity import violation

DOCS = CHART.parents[1] / "docs" / "install.md"
SUPPORTED = ("1.31", "1.32", "1.33", "1.34")
LIMITS = {
    "maxNodes": 4, "maxGPUsPerNode": 8, "maxGPUs": 16, "extendedResources": [], "images": ["a/b/"], "sources": [],
    "namespaceSelector": {"matchLabels": {"a": "b"}}, "validationActions": ["Warn", "Audit"],
}  # fmt: skip
EVERYTHING = (
    *POLICIES,
    *("--set", "monitoring.podMonitors.enabled=true,monitoring.rules.enabled=true"),
    *("--set", "monitoring.dashboards.enabled=true,operator.gpuMemory=80Gi,priorityClassName=high"),
    *values(
        admission__policies={"default": LIMITS},
        tolerations=[{"key": "system", "operator": "Exists", "effect": "NoSchedule"}],
        affinity={"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
            {"matchExpressions": [{"key": "a", "operator": "Exists"}]}]}}},
        imagePullSecrets=[{"name": "regcred"}],
        nodeSelector={"disk": "ssd"},
        podAnnotations={"a": "b"},
        podLabels={"c": "d"},
        serviceAccount__annotations={"e": "f"},
    ),
    *MONITORING_APIS,
)  # fmt: skip
CASES = {
    "defaults": (),
    "namespaces": (*NAMESPACES, *POLICIES),
    "everything": EVERYTHING,
    "least": ("--set", "replicas=1,crds.install=false,rbac.aggregate=false,serviceAccount.create=false",
              "--set", "serviceAccount.name=ours,prometheus.annotations=false"),
}  # fmt: skip


def chart() -> dict[str, Any]:
    return yaml.safe_load((CHART / "Chart.yaml").read_text())


@pytest.mark.parametrize("case", CASES)
def test_helm_lint_has_no_complaint(case: str):
    words = [word for word in CASES[case] if word not in MONITORING_APIS]
    if case == "everything":  # lint asks no cluster and takes no --api-versions
        words += ["--set", "monitoring.podMonitors.enabled=false,monitoring.rules.enabled=false"]
    done = subprocess.run([helm(), "lint", "--strict", CHART, *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("case", "version"),
    [
        *(("everything", one) for one in SUPPORTED),
        *((one, SUPPORTED[-1]) for one in CASES if one != "everything"),
    ],
)
def test_every_manifest_is_valid(case: str, version: str):
    checked = 0
    for manifest in render(*CASES[case]):
        if not manifest["apiVersion"].startswith("monitoring.coreos.com"):
            kubernetes_validate.validate(manifest, version, strict=True)
            checked += 1
    assert checked > 5


def test_no_two_manifests_are_the_same_object():
    for words in CASES.values():
        found = [
            (one["kind"], one["metadata"].get("namespace"), one["metadata"]["name"]) for one in render(*words)
        ]
        assert len(found) == len(set(found)), words


def test_every_template_has_its_tests():
    for template in (CHART / "templates").rglob("*.[yt][ax][mt]*"):
        assert (CHART.parents[1] / f"tests/chart/test_{template.stem.lower()}.py").exists(), template.name


def test_the_oldest_kubernetes_is_the_one_that_the_chart_asks_for():
    assert chart()["kubeVersion"] == f">={SUPPORTED[0]}.0-0"
    said = refusal("--kube-version", "1.30.9")
    assert "chart requires kubeVersion: >=1.31.0-0" in said
    assert render("--kube-version", f"{SUPPORTED[0]}.0-eks-1a2b3c")  # as clouds call theirs


def test_the_docs_name_the_same_versions():
    assert re.search(rf"Kubernetes {SUPPORTED[0]} to {SUPPORTED[-1]}\b", DOCS.read_text())


def example(heading: str, tmp_path: Path) -> tuple[str, ...]:
    """The words that install with the values which the docs show below a heading."""
    section = DOCS.read_text().partition(f"\n### {heading}\n")[2]
    file = tmp_path / "values.yaml"
    file.write_text(section.partition("```yaml\n")[2].partition("```")[0])
    return ("--values", str(file))


def test_the_strict_installation_of_the_docs_is_strict(tmp_path: Path):
    manifests = render(*example("For a platform that says no by default", tmp_path))
    assert [found for found in manifests if found["kind"].startswith("ClusterRole")] == []
    assert {found["metadata"]["namespace"] for found in of_kind(manifests, "Role")} == {
        "team-a",
        "team-b",
        SYSTEM,
    }
    assert "secrets" not in str(of_kind(manifests, "Role"))
    assert environment(manifests)["SFTJOB_OPERATOR_POD_SECURITY"] == "Restricted"
    assert len(of_kind(manifests, "NetworkPolicy")) == 6
    assert len(of_kind(manifests, "ValidatingAdmissionPolicy")) == 2


def test_on_openshift_no_pod_names_a_user_or_a_group(tmp_path: Path):
    manifests = render(*example("OpenShift", tmp_path))
    assert environment(manifests)["SFTJOB_OPERATOR_USER_IDS"] == "Assigned"
    assert "65532" not in yaml.safe_dump_all(manifests)
    assert operator_pod(manifests)["spec"]["securityContext"]["runAsNonRoot"] is True


def test_the_limits_of_the_docs_are_limits(tmp_path: Path):
    manifests = render(*example("Limits", tmp_path))
    names = [found["metadata"]["name"] for found in of_kind(manifests, "ValidatingAdmissionPolicy")]
    assert names == ["sftjob-default", "sftjob-default-scale", "sftjob-research", "sftjob-research-scale"]
    first = one(manifests, "ValidatingAdmissionPolicy", "sftjob-default")["spec"]["validations"][0]
    said = first["messageExpression"].replace('" + string(variables.nodes) + "', "4").strip('"')
    assert f"denied request: {said}\n" in DOCS.read_text()


def pods(manifests: tuple[Manifest, ...]) -> list[Manifest]:
    return [operator_pod(manifests), *(one for one in manifests if one["kind"] == "Pod")]


@pytest.mark.parametrize("words", CASES.values(), ids=CASES)
def test_every_pod_keeps_to_the_restricted_pod_security_standard(words: tuple[str, ...]):
    found = pods(render(*words))
    assert len(found) == 2, "the operator and the test"
    for pod in found:
        assert violation(pod["spec"], "Restricted") is None
        for name in (
            "hostNetwork",
            "hostPID",
            "hostIPC",
            "initContainers",
        ):  # beyond what podTemplate can reach
            assert name not in pod["spec"]
        for container in pod["spec"]["containers"]:
            assert container["securityContext"]["readOnlyRootFilesystem"] is True
            assert not [port for port in container.get("ports", []) if "hostPort" in port]


def test_only_the_operator_has_a_token():
    operator, test = (pod["spec"] for pod in pods(render()))
    assert operator["automountServiceAccountToken"] is True
    assert test["automountServiceAccountToken"] is False
    assert "serviceAccountName" not in test
