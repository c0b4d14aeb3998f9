"""templates/validate.yaml: combinations of values that the schema cannot see."""

from __future__ import annotations

from rendering import NAMESPACES, refusal


def test_scope_namespaces_needs_namespaces():
    assert "rbac.scope is namespaces: list them in rbac.namespaces" in refusal(
        "--set", "rbac.scope=namespaces"
    )


def test_scope_cluster_takes_none():
    assert "rbac.namespaces is only for rbac.scope: namespaces" in refusal("--set", "rbac.namespaces={a}")


def test_a_quota_for_a_namespace_that_the_operator_does_not_see_is_refused():
    words = refusal(*NAMESPACES, "--set", "quotas.namespaces.team-c.jobs=1")
    assert "quotas.namespaces.team-c: rbac.namespaces does not list that namespace" in words
