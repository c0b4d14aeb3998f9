"""Last of all, over everything that the tests of this folder did: the operator has the rights it uses, and no other;
and every pod of a job was held to the `restricted` Pod Security Standard.
"""

from __future__ import annotations

from datetime import datetime

import pytest
import yaml

import audit
from rooms import SYSTEM, Kube

pytestmark = pytest.mark.cluster
LABEL = "pod-security.kubernetes.io"
UNSEEN = {("sftjob.dev", "sftjobs/finalizers", "update")}
"""Rights without a request in the audit log. The API server's OwnerReferencesPermissionEnforcement, which this cluster
runs, asks for this one by itself: without it no child could be made.
"""


@pytest.fixture(scope="module")
def calls(operator: Kube, began: datetime) -> list[audit.Call]:
    from devcluster import cluster

    if cluster.given_cluster() is not None:
        pytest.skip("this cluster is not ours: its audit log cannot be read")
    return audit.operator(began)


def rights(operator: Kube) -> set[tuple[str, str, str]]:
    """Those of the chart as it was rendered for this cluster, other than those for people."""
    text = operator.run("helm", "get", "manifest", "sftjob", "-n", SYSTEM).stdout
    of_the_operator = {"sftjob", "sftjob-leader-election"}
    return {
        (group, resource, verb)
        for one in yaml.safe_load_all(text)
        if one and one["kind"] in ("ClusterRole", "Role") and one["metadata"]["name"] in of_the_operator
        for rule in one["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


NO_DENIAL = ("is being terminated", "cannot find RESTMapping")
"""Refusals with the code of a denial: of a namespace that goes, and of an admission that has not noticed SFTJob yet."""


def test_the_operator_was_denied_nothing(calls: list[audit.Call]):
    denied = {
        (call.verb, call.resource, call.message)
        for call in calls
        if call.code == 403 and not any(words in call.message for words in NO_DENIAL)
    }
    assert denied == set()


def test_the_operator_has_no_right_that_it_does_not_use(
    operator: Kube, calls: list[audit.Call], all_of_this_folder: bool
):
    if not all_of_this_folder:
        pytest.skip("only a part of tests/cluster ran: what is unused cannot be told")
    used = {(call.group, call.resource, call.verb) for call in calls if call.code != 403}
    assert rights(operator) - used == UNSEEN
    assert used <= rights(operator)


def test_every_pod_of_a_job_was_held_to_the_restricted_standard(began: datetime, calls: list[audit.Call]):
    policies, violations = set(), set()
    for call in audit.calls(began, "pod-security.kubernetes.io/"):
        if call.resource == "pods" and call.verb == "create":
            policies.add((call.namespace, call.annotations.get(f"{LABEL}/enforce-policy")))
        if found := call.annotations.get(f"{LABEL}/audit-violations"):
            violations.add((call.namespace, call.resource, found))
    assert {policy for _, policy in policies} == {"restricted:latest"}, policies
    assert violations == set()
