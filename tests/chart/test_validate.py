"""templates/validate.yaml: combinations of values that the schema cannot see."""

from __future__ import annotations

from rendering import refusal


def test_scope_namespaces_needs_namespaces():
    assert "rbac.scope is namespaces: list them in rbac.namespaces" in refusal(
        "--set", "rbac.scope=namespaces"
    )


def test_scope_cluster_takes_none():
    assert "rbac.namespaces is only for rbac.scope: namespaces" in refusal("--set", "rbac.namespaces={a}")
