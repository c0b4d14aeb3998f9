"""templates/userroles.yaml: people get SFTJobs through the roles they have."""

from __future__ import annotations

from rendering import Manifest, of_kind, one, render

AGGREGATE = "rbac.authorization.k8s.io/aggregate-to-"
READ, WRITE = {"get", "list", "watch"}, {"create", "update", "patch", "delete", "deletecollection"}


def role(name: str) -> Manifest:
    return one(render(), "ClusterRole", name)


def rules(name: str) -> dict[str, set[str]]:
    return {resource: set(rule["verbs"]) for rule in role(name)["rules"] for resource in rule["resources"]}


def joined(name: str) -> set[str]:
    labels = role(name)["metadata"]["labels"].items()
    return {
        key.removeprefix(AGGREGATE) for key, value in labels if key.startswith(AGGREGATE) and value == "true"
    }


def test_view_reads_jobs_their_status_and_their_scale():
    assert joined("sftjob-view") == {"view"}
    assert rules("sftjob-view") == {"sftjobs": READ, "sftjobs/status": {"get"}, "sftjobs/scale": {"get"}}


def test_edit_and_admin_write_jobs_and_scale_them_but_status_is_the_operators():
    assert joined("sftjob-edit") == {"edit", "admin"}
    assert rules("sftjob-edit") == {
        "sftjobs": READ | WRITE,  # a role that can be bound by itself
        "sftjobs/status": {"get"},
        "sftjobs/scale": {"get", "update", "patch"},
    }


def test_every_rule_is_about_sftjobs_only():
    for name in ("sftjob-view", "sftjob-edit"):
        assert {group for rule in role(name)["rules"] for group in rule["apiGroups"]} == {"sftjob.dev"}


def test_without_aggregation_only_the_operators_own_role_is_left():
    roles = of_kind(render("--set", "rbac.aggregate=false"), "ClusterRole")
    assert [found["metadata"]["name"] for found in roles] == ["sftjob"]
