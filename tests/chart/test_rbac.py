"""templates/rbac.yaml: what the operator may do, and nothing beyond."""

from __future__ import annotations

from rendering import NAMESPACES, SYSTEM, Manifest, environment, of_kind, one, render

# (API group, resource) -> verbs, in the namespaces of SFTJobs. What calls them: cluster/kubernetes.py for
# reconcile.py, polling.py and resync.py; watching is Kopf's.
WORK = {
    ("sftjob.dev", "sftjobs"): {"get", "list", "watch", "delete"},
    ("sftjob.dev", "sftjobs/status"): {"patch"},
    ("sftjob.dev", "sftjobs/finalizers"): {"update"},  # for blockOwnerDeletion, where the cluster checks it
    ("batch", "jobs"): {"get", "list", "watch", "create", "patch", "delete"},
    ("", "configmaps"): {"get", "create", "delete"},
    ("", "services"): {"get", "create", "patch"},
    ("", "pods"): {"list"},
    ("", "persistentvolumeclaims"): {"get", "create"},
    ("", "secrets"): {"get"},
    ("", "events"): {"create"},
}
LEASES = {("coordination.k8s.io", "leases"): {"get", "create", "patch"}}
NODES = {("", "nodes"): {"list"}}


def rights(*roles: Manifest) -> dict[tuple[str, str], set[str]]:
    table: dict[tuple[str, str], set[str]] = {}
    for role in roles:
        for rule in role["rules"]:
            for group in rule["apiGroups"]:
                for resource in rule["resources"]:
                    table.setdefault((group, resource), set()).update(rule["verbs"])
    return table


def bound_to_the_operator(manifests: tuple[Manifest, ...]) -> dict[tuple[str, str | None], str]:
    """(role, namespace) -> service account."""
    bindings = of_kind(manifests, "RoleBinding") + of_kind(manifests, "ClusterRoleBinding")
    return {
        (found["roleRef"]["name"], found["metadata"].get("namespace")): found["subjects"][0]["name"]
        for found in bindings
    }


def test_cluster_scope_has_exactly_the_rights_the_code_uses():
    manifests = render()
    (lease_role,) = of_kind(manifests, "Role")
    assert rights(one(manifests, "ClusterRole", "sftjob")) == WORK | NODES
    assert rights(lease_role) == LEASES
    assert lease_role["metadata"]["namespace"] == SYSTEM
    assert bound_to_the_operator(manifests) == {
        ("sftjob", None): "sftjob",
        ("sftjob-leader-election", SYSTEM): "sftjob",
    }


def test_namespaces_scope_gives_no_right_outside_of_them():
    manifests = render(*NAMESPACES)
    assert of_kind(manifests, "ClusterRoleBinding") == []
    roles = {found["metadata"]["namespace"]: found for found in of_kind(manifests, "Role")}
    assert roles.keys() == {"team-a", "team-b", SYSTEM}
    assert rights(roles["team-a"]) == rights(roles["team-b"]) == WORK
    assert rights(roles[SYSTEM]) == LEASES
    assert set(bound_to_the_operator(manifests)) == {
        ("sftjob", "team-a"),
        ("sftjob", "team-b"),
        ("sftjob-leader-election", SYSTEM),
    }
    assert environment(manifests)["SFTJOB_OPERATOR_NAMESPACES"] == "team-a,team-b"


def test_no_rule_has_a_wildcard():
    for manifests in (render(), render(*NAMESPACES)):
        for role in of_kind(manifests, "ClusterRole") + of_kind(manifests, "Role"):
            for rule in role["rules"]:
                assert "*" not in [*rule["apiGroups"], *rule["resources"], *rule["verbs"]]


def test_of_leases_only_the_own_one_can_be_read_and_written():
    (role,) = of_kind(render(), "Role")
    (named,) = [rule for rule in role["rules"] if "create" not in rule["verbs"]]
    assert named["resourceNames"] == [environment(render())["SFTJOB_OPERATOR_LEASE_NAME"]]


def test_the_right_to_read_secrets_can_be_kept_back():
    manifests = render("--set", "rbac.readSecrets=false")
    expected = {key: verbs for key, verbs in (WORK | NODES).items() if key != ("", "secrets")}
    assert rights(one(manifests, "ClusterRole", "sftjob")) == expected


def test_a_second_release_for_the_whole_cluster_collides_with_the_first():
    manifests = render(release="another")
    assert bound_to_the_operator(manifests)[("sftjob", None)] == "another-sftjob"
    assert one(manifests, "ClusterRole", "sftjob"), "Helm refuses a second owner of that name"
