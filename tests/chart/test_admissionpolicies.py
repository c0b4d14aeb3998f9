"""templates/admissionpolicies.yaml: limits on SFTJobs. tests/cluster/test_admission.py asks a real API server."""

from __future__ import annotations

import pytest

from rendering import NAMESPACES, SCHEMA, Manifest, of_kind, refusal, render, text, values
from sftjob_operator.api.crd import crd
from sftjob_operator.api.v1alpha1.workers import Workers

EVERYTHING = {
    "maxNodes": 4, "maxGPUsPerNode": 8, "maxGPUs": 16, "extendedResources": ["rdma/hca"],
    "images": ["registry.example.com/ml/"], "sources": ["hf://acme/"],
}  # fmt: skip
TEMPLATE = ("--show-only", "templates/admissionpolicies.yaml")


def policies(**limits: object) -> dict[str, Manifest]:
    found = of_kind(render(*values(admission__policies={"x": limits})), "ValidatingAdmissionPolicy")
    return {policy["metadata"]["name"]: policy["spec"] for policy in found}


def bindings(*words: str, **limits: object) -> list[Manifest]:
    made = render(*values(admission__policies={"x": limits}), *words)
    return [binding["spec"] for binding in of_kind(made, "ValidatingAdmissionPolicyBinding")]


def test_there_is_none_unless_it_is_wanted():
    assert [found for found in render() if found["kind"].startswith("Validating")] == []


def test_values_of_a_release_that_knew_of_no_limits_can_be_used_again():
    assert [
        found for found in render("--set", "admission=null") if found["kind"].startswith("Validating")
    ] == []


def test_an_entry_is_a_policy_and_a_binding_and_the_same_for_scale():
    assert policies(**EVERYTHING).keys() == {"sftjob-x", "sftjob-x-scale"}
    assert [binding["policyName"] for binding in bindings(**EVERYTHING)] == ["sftjob-x", "sftjob-x-scale"]
    assert all(policy["failurePolicy"] == "Fail" for policy in policies(**EVERYTHING).values())


def test_jobs_are_checked_when_they_come_and_when_they_change():
    (rule,) = policies(maxNodes=4)["sftjob-x"]["matchConstraints"]["resourceRules"]
    assert (rule["resources"], rule["operations"]) == (["sftjobs"], ["CREATE", "UPDATE"])
    (rule,) = policies(maxNodes=4)["sftjob-x-scale"]["matchConstraints"]["resourceRules"]
    assert (rule["resources"], rule["operations"]) == (["sftjobs/scale"], ["UPDATE"])


@pytest.mark.parametrize("name", EVERYTHING)
def test_a_limit_checks_what_it_names_and_nothing_else(name: str):
    checks = policies(**{name: EVERYTHING[name]})["sftjob-x"]["validations"]
    # with a limit of GPUs come the resources by which they could be had past gpusPerNode
    # and sources are those of the model and of the data
    assert len(checks) == (2 if name.startswith("maxGPUs") or name == "sources" else 1)
    assert all("message" in check or "messageExpression" in check for check in checks)


def test_a_limit_that_scaling_cannot_exceed_has_no_policy_for_it():
    assert policies(images=[], sources=[], maxGPUsPerNode=8).keys() == {"sftjob-x"}


def test_an_empty_list_allows_nothing_and_says_so():
    (images, models, data) = policies(images=[], sources=[])["sftjob-x"]["validations"]
    assert images["expression"] == 'variables.image == "" || false'
    assert models["expression"] == 'variables.modelUri == "" || false'
    assert data["expression"] == "variables.dataUris.all(uri, false)"
    assert images["messageExpression"].endswith('not allowed here: leave it out"')


def test_an_entry_that_is_no_folder_does_not_cover_names_that_begin_like_it():
    (check,) = policies(images=["registry.example.com/ml/trainer"])["sftjob-x"]["validations"]
    assert r'matches("^registry\\.example\\.com/ml/trainer([:@].*)?$")' in check["expression"]


def test_what_the_api_assumes_for_absent_fields_is_what_the_policy_assumes():
    variables = {one["name"]: one["expression"] for one in policies(maxNodes=4)["sftjob-x"]["variables"]}
    workers = Workers()
    assert variables["nodes"].endswith(f".orValue({workers.nodes})")
    assert variables["gpusPerNode"].endswith(f".orValue({workers.gpus_per_node})")


def test_scaling_counts_the_most_gpus_that_a_node_may_have():
    spec = crd()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]
    most = spec["workers"]["properties"]["gpusPerNode"]["maximum"]
    for limits, per_node in (({}, most), ({"maxGPUsPerNode": 8}, 8), ({"maxGPUsPerNode": 0}, 0)):
        (check,) = policies(maxGPUs=16, **limits)["sftjob-x-scale"]["validations"]
        assert check["expression"] == f"object.spec.replicas * {per_node} <= 16"


def test_limits_hold_everywhere_unless_namespaces_are_chosen():
    assert all("matchResources" not in binding for binding in bindings(maxNodes=4))
    selector = {"matchLabels": {"team": "research"}}
    for binding in bindings(maxNodes=4, namespaceSelector=selector):
        assert binding["matchResources"] == {"namespaceSelector": selector}


def test_a_release_for_some_namespaces_limits_nobody_else():
    ours = {"key": "kubernetes.io/metadata.name", "operator": "In", "values": ["team-a", "team-b"]}
    theirs = {"key": "tier", "operator": "Exists"}
    for binding in bindings(*NAMESPACES, maxNodes=4, namespaceSelector={"matchExpressions": [theirs]}):
        assert binding["matchResources"]["namespaceSelector"] == {"matchExpressions": [theirs, ours]}


def test_a_limit_can_first_only_be_told_of():
    assert {tuple(binding["validationActions"]) for binding in bindings(maxNodes=4)} == {("Deny",)}
    told = bindings(maxNodes=4, validationActions=["Warn", "Audit"])
    assert {tuple(binding["validationActions"]) for binding in told} == {("Warn", "Audit")}
    both = values(admission__policies={"x": {"maxNodes": 4, "validationActions": ["Deny", "Warn"]}})
    assert "admission.policies.x.validationActions: Deny says what Warn would" in refusal(*both)


@pytest.mark.parametrize(
    ("limits", "complaint"),
    [
        ({}, "anyOf"),
        ({"validationActions": ["Deny"]}, "anyOf"),
        ({"maxnodes": 4}, "maxnodes"),
        ({"maxNodes": "4"}, "maxNodes"),
        ({"images": ["registry.example.com"]}, "images"),
        ({"sources": ["acme/"]}, "sources"),
        ({"extendedResources": ["gpu"]}, "extendedResources"),
        ({"maxNodes": 4, "namespaceSelector": {"team": "research"}}, "team"),
    ],
    ids=str,
)
def test_a_wrong_limit_is_refused_by_name(limits: dict[str, object], complaint: str):
    assert complaint in refusal(*values(admission__policies={"x": limits}))


def test_every_limit_of_the_schema_has_an_effect():
    known = SCHEMA["properties"]["admission"]["properties"]["policies"]["additionalProperties"]["properties"]
    plain = text(*values(admission__policies={"x": {"maxNodes": 1}}), *TEMPLATE)
    others = {**EVERYTHING, "validationActions": ["Audit"], "namespaceSelector": {"matchLabels": {"a": "b"}}}
    assert known.keys() == others.keys()
    for name, value in others.items():
        assert text(*values(admission__policies={"x": {"maxNodes": 1, name: value}}), *TEMPLATE) != plain, (
            name
        )
