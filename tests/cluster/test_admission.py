"""The chart's limits at a real API server: what is refused, in which words, and what cannot get around them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

import rendering
from rooms import Kube, resting_operator, until

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("crd")]
NAMESPACE, ELSEWHERE = "limited", "unlimited"
LIMITS = {
    "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": NAMESPACE}},
    "maxNodes": 4,
    "maxGPUsPerNode": 8,
    "maxGPUs": 16,
    "extendedResources": ["rdma/hca"],
    "images": ["registry.example.com/ml/", "registry.example.com/base/trainer"],
    "sources": ["hf://acme/", "hf://bigco/one", "s3://chats/"],
}


def sftjob(name: str = "job", workers: Any = None, **spec: Any) -> dict[str, Any]:
    whole = {
        "suspend": True,
        "model": {"path": "models/base"},
        "data": {"train": [{"path": "datasets/a.jsonl"}]},
        "workspace": {"claimName": "workspace"},
        **({} if workers is None else {"workers": workers}),
        **spec,
    }
    return {"apiVersion": "sftjob.dev/v1alpha1", "kind": "SFTJob", "metadata": {"name": name}, "spec": whole}


def answer(kube: Kube, job: dict[str, Any], *words: str, namespace: str = NAMESPACE) -> str:
    """What the API server says against creating it; empty when it is accepted."""
    words = words or ("create", "--dry-run=server")
    return kube.kubectl(*words, "-n", namespace, "-f", "-", stdin=json.dumps(job)).stderr


def patched(kube: Kube, name: str, **spec: Any) -> str:
    words = ("patch", "sftjob", name, "-n", NAMESPACE, "--type=merge", "--dry-run=server")
    return kube.kubectl(*words, "-p", json.dumps({"spec": spec})).stderr


def scaled(kube: Kube, name: str, nodes: int) -> str:
    words = ("scale", "sftjob", name, "-n", NAMESPACE, "--dry-run=server", f"--replicas={nodes}")
    return kube.kubectl(*words).stderr


@pytest.fixture(scope="module")
def limited(kube: Kube, crd: None) -> Iterator[Kube]:
    """The policies as the chart renders them, in force; and jobs that were there before them."""
    words = rendering.values(admission__policies={"test": LIMITS})
    policies = rendering.text(*words, "--show-only", "templates/admissionpolicies.yaml")
    with resting_operator(kube):
        for namespace in (NAMESPACE, ELSEWHERE):
            kube.kubectl("create", "namespace", namespace)
        before = {"nodes": 9, "gpusPerNode": 8}
        for job in (sftjob("before", before), sftjob("one", {"nodes": 1, "gpusPerNode": 4})):
            assert not answer(kube, job, "create")
        try:
            kube.kubectl("apply", "-f", "-", stdin=policies, check=True)
            for name, refused in (("spec", lambda: answer(kube, sftjob(workers=before))),
                                  ("scale", lambda: scaled(kube, "one", 5))):  # fmt: skip
                until(f"the limits of {name}", lambda refused=refused: "denied request" in refused(), 30)
            yield kube
        finally:
            kube.kubectl("delete", "-f", "-", stdin=policies)
            kube.kubectl("delete", "namespace", NAMESPACE, ELSEWHERE, "--wait=false")


@pytest.mark.parametrize(
    "job",
    [
        sftjob(),
        sftjob(workers={"nodes": 4, "gpusPerNode": 4}),
        sftjob(workers={"nodes": 2, "gpusPerNode": 8}),
        sftjob(workers={"image": "registry.example.com/ml/trainer:2"}),
        sftjob(workers={"image": "registry.example.com/base/trainer:2"}),
        sftjob(workers={"resources": {"limits": {"rdma/hca": 1, "cpu": "4", "memory": "8Gi"}}}),
        sftjob(model={"uri": "hf://acme/base@main"}),
        sftjob(model={"uri": "hf://bigco/one@main"}),
        sftjob(data={"train": [{"uri": "s3://chats/a.jsonl"}, {"path": "b.jsonl"}]}),
    ],
    ids=["minimal", "4 x 4", "2 x 8", "image below", "image named", "resources", "model below", "model named", "data"],
)  # fmt: skip
def test_what_keeps_to_the_limits_is_accepted(limited: Kube, job: dict[str, Any]):
    assert answer(limited, job) == ""


@pytest.mark.parametrize(
    ("job", "words"),
    [
        (sftjob(workers={"nodes": 5}), "spec.workers.nodes is 5: at most 4 here"),
        (sftjob(workers={"nodes": 1, "gpusPerNode": 16}), "spec.workers.gpusPerNode is 16: at most 8 here"),
        (sftjob(workers={"nodes": 3, "gpusPerNode": 8}),
         "spec.workers.nodes times spec.workers.gpusPerNode is 24: at most 16 GPUs here"),
        (sftjob(workers={"gpusPerNode": 0, "resources": {"limits": {"nvidia.com/gpu": 64}}}),
         "may name rdma/hca here: GPUs are asked for by spec.workers.gpusPerNode"),
        (sftjob(prepare={"resources": {"requests": {"amd.com/gpu": "8"}}}), "spec.prepare.resources may name rdma/hca"),
        (sftjob(workers={"image": "registry.example.com/ml-evil/trainer"}),
         "spec.workers.image: registry.example.com/ml-evil/trainer is not allowed here: leave it out, or use one of"),
        (sftjob(workers={"image": "registry.example.com/base/trainer-evil:1"}), "spec.workers.image"),
        (sftjob(model={"uri": "hf://acme-evil/base"}),
         "spec.model.uri: hf://acme-evil/base is not allowed here: use spec.model.path, or one of hf://acme/"),
        (sftjob(model={"uri": "hf://bigco/one-more"}), "spec.model.uri"),
        (sftjob(data={"train": [{"uri": "s3://chats/a"}, {"uri": "s3://chats-evil/b"}]}),
         "spec.data: s3://chats-evil/b is not allowed here: use path, or one of hf://acme/"),
        (sftjob(data={"train": [{"path": "a"}], "eval": {"sources": [{"uri": "https://elsewhere.example/c.jsonl"}]}}),
         "spec.data: https://elsewhere.example/c.jsonl is not allowed"),
    ],
    ids=["nodes", "GPUs a node", "GPUs", "GPUs as resources", "GPUs of prepare", "image below", "image named",
         "model below", "model named", "data", "held out data"],
)  # fmt: skip
def test_what_exceeds_a_limit_is_refused_with_field_and_limit(limited: Kube, job: dict[str, Any], words: str):
    said = answer(limited, job)
    assert "ValidatingAdmissionPolicy 'sftjob-test'" in said
    assert words in said


def test_a_change_past_a_limit_is_refused_like_a_new_job(limited: Kube):
    assert patched(limited, "one", workers={"nodes": 4}) == ""
    assert "spec.workers.nodes is 5: at most 4 here" in patched(limited, "one", workers={"nodes": 5})
    assert "at most 16 GPUs here" in patched(limited, "one", workers={"nodes": 3, "gpusPerNode": 8})


def test_kubectl_scale_does_not_get_around_a_limit(limited: Kube):
    assert scaled(limited, "one", 2) == ""
    assert "spec.workers.nodes would be 5: at most 4 here" in scaled(limited, "one", 5)
    # 3 x 4 would do, but a Scale does not show the 4
    assert "3 nodes may be more than 16 GPUs" in scaled(limited, "one", 3)


def test_a_job_that_was_there_before_the_limit_can_still_be_looked_after(limited: Kube):
    assert patched(limited, "before", suspend=False, failurePolicy={"maxRestarts": 1}) == ""
    assert scaled(limited, "before", 8) == ""
    assert "at most 4 here" in patched(limited, "before", workers={"gpusPerNode": 4})
    status = ("patch", "sftjob", "before", "-n", NAMESPACE, "--type=merge", "--subresource=status")
    limited.kubectl(*status, "-p", '{"status": {"phase": "Suspended"}}', check=True)


def test_other_namespaces_are_left_alone(limited: Kube):
    assert answer(limited, sftjob(workers={"nodes": 9}), namespace=ELSEWHERE) == ""


def test_the_api_server_finds_no_fault_with_the_expressions(limited: Kube):
    def checked(name: str) -> Any:
        words = ("get", "validatingadmissionpolicy", name, "-o", "json")
        return json.loads(limited.kubectl(*words, check=True).stdout).get("status", {}).get("typeChecking")

    for name in ("sftjob-test", "sftjob-test-scale"):
        found = until(
            f"type checking of {name}", lambda name=name: checked(name) is not None and [checked(name)], 30
        )
        assert found == [{}], found
