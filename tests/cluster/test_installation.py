"""The installation, asked by `helm test`, in a namespace that admits restricted pods only."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

import rendering
from rooms import SYSTEM, Kube

pytestmark = pytest.mark.cluster
RESTRICTED = {f"pod-security.kubernetes.io/{mode}": "restricted" for mode in ("enforce", "warn")}


@pytest.fixture
def restricted(kube: Kube) -> Iterator[str]:
    """A namespace that enforces the Pod Security Standard `restricted`, with the operator's account."""
    name = "admits-restricted"
    kube.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": RESTRICTED}})
    for account in ("sftjob", "default"):
        kube.kubectl("create", "serviceaccount", account, "-n", name)
    yield name
    kube.kubectl("delete", "namespace", name, "--wait=false")


def test_the_api_server_has_nothing_against_the_pods_of_the_chart(kube: Kube, restricted: str):
    manifests = rendering.render()
    (test,) = rendering.of_kind(manifests, "Pod")
    operator = rendering.operator_pod(manifests)
    for name, pod in (("operator", operator), ("test", test)):
        manifest = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": pod["spec"]}
        words = ("create", "--dry-run=server", "--validate=strict", "-n", restricted, "-f", "-")
        done = kube.kubectl(*words, stdin=json.dumps(manifest))
        assert (done.returncode, done.stderr) == (0, ""), name


def test_helm_test_finds_an_operator_that_leads_and_watches(operator: Kube):
    done = operator.run(
        "helm", "test", "sftjob", "--namespace", SYSTEM, "--logs", "--timeout", "120s", check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "leads and watches SFTJobs" in done.stdout, done.stdout
    assert not operator.get("pod", "sftjob-test", SYSTEM), "one that succeeded is not left"
