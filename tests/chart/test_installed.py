"""templates/tests/installed.yaml: `helm test`."""

from __future__ import annotations

from rendering import POLICIES, SYSTEM, Manifest, of_kind, one, operator_pod, render, values
from sftjob_operator.settings import Settings


def pod(*words: str) -> Manifest:
    (found,) = of_kind(render(*words), "Pod")
    return found


def test_it_is_there_during_the_test_and_after_one_that_failed():
    assert pod()["metadata"]["annotations"] == {
        "helm.sh/hook": "test",
        "helm.sh/hook-delete-policy": "before-hook-creation,hook-succeeded",
    }


def test_it_asks_for_the_operators_pods_by_their_name_and_port():
    (service,) = of_kind(render(), "Service")
    (container,) = pod()["spec"]["containers"]
    assert container["command"] == ["python", "-m", "sftjob_operator.installed"]
    assert container["args"] == [f"{service['metadata']['name']}.{SYSTEM}.svc", str(Settings().http_port)]


def test_it_runs_the_operators_image_where_the_operator_may_run():
    words = values(
        nodeSelector={"a": "b"}, imagePullSecrets=[{"name": "x"}], tolerations=[{"operator": "Exists"}]
    )
    spec, operator = pod(*words)["spec"], operator_pod(render(*words))["spec"]
    for name in ("nodeSelector", "imagePullSecrets", "tolerations", "securityContext"):
        assert spec[name] == operator[name]
    for name in ("image", "imagePullPolicy", "securityContext"):
        assert spec["containers"][0][name] == operator["containers"][0][name]


def test_nothing_that_selects_the_operator_selects_it():
    labels = pod()["metadata"]["labels"].items()
    (deployment,), (budget,) = of_kind(render(), "Deployment"), of_kind(render(), "PodDisruptionBudget")
    for selector in (deployment["spec"]["selector"], budget["spec"]["selector"]):
        assert not selector["matchLabels"].items() <= labels


def test_network_policies_let_it_reach_the_operator_and_dns_only():
    policy = one(render(*POLICIES), "NetworkPolicy", "sftjob-test")["spec"]
    assert policy["podSelector"]["matchLabels"].items() <= pod(*POLICIES)["metadata"]["labels"].items()
    dns, operator = policy["egress"]
    assert "to" not in dns
    assert (
        operator["to"][0]["podSelector"]["matchLabels"].items()
        <= operator_pod(render())["metadata"]["labels"].items()
    )
    assert operator["ports"] == [{"port": Settings().http_port}]
    assert of_kind(render(), "NetworkPolicy") == []
