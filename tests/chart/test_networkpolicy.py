"""templates/networkpolicy.yaml: who may talk to whom, where the network enforces it."""

from __future__ import annotations

import pytest

from rendering import NAMESPACES, POLICIES, SYSTEM, Manifest, of_kind, operator_pod, render
from sftjob_operator.api import names


def policies(*words: str) -> dict[tuple[str, str], Manifest]:
    found = of_kind(render(*POLICIES, *words), "NetworkPolicy")
    return {(policy["metadata"]["namespace"], policy["metadata"]["name"]): policy["spec"] for policy in found}


def test_there_are_none_unless_they_are_wanted():
    assert of_kind(render(), "NetworkPolicy") == []


def test_the_operator_and_every_namespace_of_jobs_get_theirs():
    kinds = [
        (namespace, f"sftjob-{kind}")
        for namespace in ("team-a", "team-b")
        for kind in ("training", "prepare")
    ]
    assert set(policies(*NAMESPACES)) == {(SYSTEM, "sftjob"), (SYSTEM, "sftjob-test"), *kinds}


def test_with_cluster_scope_the_namespaces_are_named():
    found = policies("--set", "networkPolicy.namespaces={team-c}")
    assert {namespace for namespace, _ in found} == {SYSTEM, "team-c"}


def test_they_select_the_pods_that_are_made():
    found = policies(*NAMESPACES)
    operator = found[SYSTEM, "sftjob"]["podSelector"]["matchLabels"].items()
    assert operator <= operator_pod(render(*NAMESPACES))["metadata"]["labels"].items()
    for kind, role in (("training", names.ROLE_TRAIN), ("prepare", names.ROLE_PREPARE)):
        chosen = found["team-a", f"sftjob-{kind}"]["podSelector"]["matchLabels"]
        assert chosen.items() <= names.labels("bot", role).items()


def test_training_pods_talk_to_one_another_and_to_dns_only():
    training = policies(*NAMESPACES)["team-a", "sftjob-training"]
    dns, gang = training["egress"]
    assert {port["port"] for port in dns["ports"]} == {53, 5353}  # OpenShift's DNS pods listen on the second
    assert gang == {"to": [{"podSelector": training["podSelector"]}]}


@pytest.mark.parametrize(("value", "kind", "namespace"), [
    ("apiServerPorts", "sftjob", SYSTEM), ("downloadPorts", "sftjob-prepare", "team-a"),
])  # fmt: skip
def test_ports_to_the_outside_are_the_platforms(value: str, kind: str, namespace: str):
    spec = policies(*NAMESPACES, "--set", f"networkPolicy.{value}={{8443}}")[namespace, kind]
    outside = [rule for rule in spec["egress"] if "to" not in rule][1]
    assert outside == {"ports": [{"port": 8443}]}


def test_nobody_talks_to_a_prepare_pod():
    assert policies(*NAMESPACES)["team-b", "sftjob-prepare"]["ingress"] == []
