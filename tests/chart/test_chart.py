"""The Helm chart, rendered by helm: valid for Kubernetes 1.34, no right too many, no value without effect."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from machine import skip_or_fail
from sftjob_operator.api.crd import crd
from sftjob_operator.settings import Settings

CHART = Path(__file__).resolve().parents[2] / "charts" / "sftjob"
NAMESPACES = ("--set", "rbac.scope=namespaces", "--set", "rbac.namespaces={team-a,team-b}")
POLICIES = ("--set", "networkPolicy.enabled=true")
KUBERNETES = "1.34"

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

Manifest = dict[str, Any]
Render = Callable[..., list[Manifest]]


@pytest.fixture(scope="session")
def helm() -> Path:
    from devcluster import binaries
    from devcluster.processes import CommandError

    try:
        found = binaries.helm()
        subprocess.run([found, "version"], check=True, capture_output=True)
    except (CommandError, OSError, subprocess.CalledProcessError) as error:
        skip_or_fail(f"helm cannot be had here: {error}")
    return found


@pytest.fixture(scope="session")
def template(helm: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    def run(*words: str) -> subprocess.CompletedProcess[str]:
        command = [str(helm), "template", "sftjob", str(CHART), "--namespace", "sftjob-system", *words]
        return subprocess.run(command, capture_output=True, text=True)

    return run


@pytest.fixture(scope="session")
def render(template: Callable[..., subprocess.CompletedProcess[str]]) -> Render:
    def run(*words: str) -> list[Manifest]:
        done = template(*words)
        assert done.returncode == 0, done.stderr
        return [manifest for manifest in yaml.safe_load_all(done.stdout) if manifest]

    return run


def of_kind(manifests: list[Manifest], kind: str) -> list[Manifest]:
    return [manifest for manifest in manifests if manifest["kind"] == kind]


def operator_pod(manifests: list[Manifest]) -> Manifest:
    (deployment,) = of_kind(manifests, "Deployment")
    return deployment["spec"]["template"]


def environment(manifests: list[Manifest]) -> dict[str, str]:
    (container,) = operator_pod(manifests)["spec"]["containers"]
    return {variable["name"]: variable.get("value", "from the pod") for variable in container["env"]}


def rights(manifests: list[Manifest]) -> dict[tuple[str, str], set[str]]:
    table: dict[tuple[str, str], set[str]] = {}
    for manifest in manifests:
        for rule in manifest["rules"]:
            for group in rule["apiGroups"]:
                for resource in rule["resources"]:
                    table.setdefault((group, resource), set()).update(rule["verbs"])
    return table


def bound_to_the_operator(manifests: list[Manifest]) -> dict[tuple[str, str | None], str]:
    """(role, namespace) -> service account."""
    bindings = of_kind(manifests, "RoleBinding") + of_kind(manifests, "ClusterRoleBinding")
    return {
        (one["roleRef"]["name"], one["metadata"].get("namespace")): one["subjects"][0]["name"]
        for one in bindings
    }


def test_helm_lint_has_no_complaint(helm: Path):
    done = subprocess.run([helm, "lint", "--strict", CHART], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    "words",
    [
        (),
        NAMESPACES,
        (*NAMESPACES, *POLICIES),
        ("--set", "replicas=2"),
        ("--set", "crds.install=false,rbac.aggregate=false"),
    ],
    ids=str,
)
def test_every_manifest_is_valid_kubernetes(render: Render, words: tuple[str, ...]):
    for manifest in render(*words):
        kubernetes_validate.validate(manifest, KUBERNETES, strict=True)


def test_cluster_scope_has_exactly_the_rights_the_code_uses(render: Render):
    manifests = render()
    (role,) = [one for one in of_kind(manifests, "ClusterRole") if one["metadata"]["name"] == "sftjob"]
    (lease_role,) = of_kind(manifests, "Role")
    assert rights([role]) == WORK | NODES
    assert rights([lease_role]) == LEASES
    assert lease_role["metadata"]["namespace"] == "sftjob-system"
    assert bound_to_the_operator(manifests) == {
        ("sftjob", None): "sftjob",
        ("sftjob-leader-election", "sftjob-system"): "sftjob",
    }


def test_namespaces_scope_gives_no_right_outside_of_them(render: Render):
    manifests = render(*NAMESPACES)
    assert of_kind(manifests, "ClusterRoleBinding") == []
    roles = {one["metadata"]["namespace"]: one for one in of_kind(manifests, "Role")}
    assert roles.keys() == {"team-a", "team-b", "sftjob-system"}
    assert rights([roles["team-a"]]) == rights([roles["team-b"]]) == WORK
    assert rights([roles["sftjob-system"]]) == LEASES
    assert set(bound_to_the_operator(manifests)) == {
        ("sftjob", "team-a"),
        ("sftjob", "team-b"),
        ("sftjob-leader-election", "sftjob-system"),
    }
    assert environment(manifests)["SFTJOB_OPERATOR_NAMESPACES"] == "team-a,team-b"


def test_the_right_to_read_secrets_can_be_kept_back(render: Render):
    manifests = render("--set", "rbac.readSecrets=false")
    (role,) = [one for one in of_kind(manifests, "ClusterRole") if one["metadata"]["name"] == "sftjob"]
    assert rights([role]) == {key: verbs for key, verbs in (WORK | NODES).items() if key != ("", "secrets")}


def test_a_second_release_for_the_whole_cluster_collides_with_the_first(helm: Path):
    command = [str(helm), "template", "another", str(CHART), "--namespace", "elsewhere"]
    rendered = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    manifests = [manifest for manifest in yaml.safe_load_all(rendered) if manifest]
    assert bound_to_the_operator(manifests)[("sftjob", None)] == "another-sftjob"
    roles = {one["metadata"]["name"] for one in of_kind(manifests, "ClusterRole")}
    assert roles == {"sftjob", "another-sftjob-view", "another-sftjob-edit"}


def test_people_get_sftjobs_through_the_roles_they_have(render: Render):
    roles = {one["metadata"]["name"]: one for one in of_kind(render(), "ClusterRole")}
    assert rights([roles["sftjob-view"]]) == {
        ("sftjob.dev", "sftjobs"): {"get", "list", "watch"},
        ("sftjob.dev", "sftjobs/status"): {"get", "list", "watch"},
    }
    assert ("sftjob.dev", "sftjobs/status") not in rights([roles["sftjob-edit"]]), "status is the operator's"
    assert [
        one["metadata"]["name"] for one in of_kind(render("--set", "rbac.aggregate=false"), "ClusterRole")
    ] == ["sftjob"]


def test_the_operator_understands_every_variable_it_is_given(render: Render):
    given = environment(
        render(*NAMESPACES, "--set", "operator.gpuMemory=80Gi,trainer.image=registry.example.com/trainer:1")
    )
    settings = Settings.from_environment(given)
    known = {f"SFTJOB_OPERATOR_{name.upper()}" for name in Settings.__dataclass_fields__}
    assert given.keys() <= known
    assert settings.trainer_image == "registry.example.com/trainer:1"
    assert settings.gpu_memory == "80Gi"
    assert settings.namespaces == ("team-a", "team-b")
    assert settings.lease_name == "sftjob"
    assert (settings.workers, settings.resync_seconds) == (8, 300.0)


def test_chart_and_code_agree_on_defaults(render: Render):
    settings, defaults = Settings.from_environment(environment(render())), Settings()
    for name in (
        "workers",
        "resync_seconds",
        "log_format",
        "log_level",
        "gpu_memory",
        "namespaces",
        "http_port",
    ):
        assert getattr(settings, name) == getattr(defaults, name), name


def test_the_pod_passes_the_restricted_pod_security_standard(render: Render):
    spec = operator_pod(render())["spec"]
    (container,) = spec["containers"]
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["runAsUser"] == 65532
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert container["volumeMounts"] == [{"name": "tmp", "mountPath": "/tmp"}]
    assert spec["volumes"][0].keys() == {"name", "emptyDir"}


def test_probes_and_scrapes_go_where_the_operator_listens(render: Render):
    pod = operator_pod(render())
    (container,) = pod["spec"]["containers"]
    (port,) = container["ports"]
    assert port["containerPort"] == Settings().http_port
    assert container["livenessProbe"]["httpGet"] == {"path": "/healthz", "port": "http"}
    assert container["readinessProbe"]["httpGet"] == {"path": "/readyz", "port": "http"}
    annotations = pod["metadata"]["annotations"]
    assert annotations["prometheus.io/port"] == str(Settings().http_port)
    assert annotations["prometheus.io/path"] == "/metrics"
    without = operator_pod(render("--set", "prometheus.annotations=false"))["metadata"]["annotations"]
    assert not [name for name in without if name.startswith("prometheus.io/")]


def test_a_disruption_budget_is_there_only_when_it_can_be_kept(render: Render):
    assert of_kind(render(), "PodDisruptionBudget") == []
    manifests = render("--set", "replicas=2")
    (budget,) = of_kind(manifests, "PodDisruptionBudget")
    labels = operator_pod(manifests)["metadata"]["labels"]
    assert budget["spec"]["selector"]["matchLabels"].items() <= labels.items()
    assert "podAntiAffinity" in operator_pod(manifests)["spec"]["affinity"]


def test_the_definition_is_the_generated_one_and_stays_after_an_uninstall(render: Render):
    (kept,) = of_kind(render(), "CustomResourceDefinition")
    assert kept["spec"] == crd()["spec"]
    assert kept["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep"}
    (plain,) = of_kind(render("--set", "crds.keep=false"), "CustomResourceDefinition")
    assert plain == crd()
    assert of_kind(render("--set", "crds.install=false"), "CustomResourceDefinition") == []


APIS = ("--api-versions", "monitoring.coreos.com/v1/PodMonitor,monitoring.coreos.com/v1/PrometheusRule")


def monitored(*names: str) -> tuple[str, ...]:
    return ("--set", ",".join(f"monitoring.{name}.enabled=true" for name in names), *APIS)


def test_nothing_of_other_operators_is_asked_for_unless_it_is_wanted(render: Render):
    groups = {one["apiVersion"].partition("/")[0] for one in render()}
    assert "monitoring.coreos.com" not in groups
    assert of_kind(render(), "ConfigMap") == []


def test_pod_monitors_find_the_ports_and_labels_that_pods_have(render: Render):
    manifests = render(*monitored("podMonitors"))
    operator, trainers = of_kind(manifests, "PodMonitor")
    assert (
        operator["spec"]["selector"]["matchLabels"].items()
        <= operator_pod(manifests)["metadata"]["labels"].items()
    )
    (endpoint,) = operator["spec"]["podMetricsEndpoints"]
    assert endpoint["port"] == operator_pod(manifests)["spec"]["containers"][0]["ports"][0]["name"]
    assert endpoint["honorLabels"], "else the namespace of an SFTJob becomes that of the operator"
    golden = yaml.safe_load((CHART.parents[1] / "tests/core/golden/gpu-minimal/expected.yaml").read_text())
    made = [manifest for effects in golden.values() for effect in effects for manifest in effect.values()]
    pods = [manifest["spec"]["template"] for manifest in made if manifest["kind"] == "Job"]
    found = [
        pod
        for pod in pods
        if trainers["spec"]["selector"]["matchLabels"].items() <= pod["metadata"]["labels"].items()
    ]
    assert len(found) == 1, "training pods only: a prepare pod serves no metrics"
    ports = [port["name"] for port in found[0]["spec"]["containers"][0]["ports"]]
    assert trainers["spec"]["podMetricsEndpoints"][0]["port"] in ports
    assert trainers["spec"]["namespaceSelector"] == {"any": True}
    within = of_kind(render(*NAMESPACES, *monitored("podMonitors")), "PodMonitor")[1]
    assert within["spec"]["namespaceSelector"] == {"matchNames": ["team-a", "team-b"]}


def test_the_rule_is_the_plain_file_with_links_that_lead_somewhere(render: Render):
    link = ("--set", "monitoring.rules.runbookUrl=https://docs.example.com/sftjob/")
    (rule,) = of_kind(render(*monitored("rules"), *link), "PrometheusRule")
    plain = (CHART / "files/rules/sftjob.yaml").read_text()
    assert rule["spec"] == yaml.safe_load(plain.replace("RUNBOOKS/", "https://docs.example.com/sftjob/"))


def test_dashboards_are_the_generated_files_under_the_label_that_grafana_looks_for(render: Render):
    made = of_kind(render("--set", "monitoring.dashboards.enabled=true"), "ConfigMap")
    files = {path.name: path.read_text() for path in (CHART / "files/dashboards").glob("*.json")}
    assert len(files) == 3
    found = {name: text for one in made for name, text in one["data"].items()}
    assert {f"sftjob-{name}": json.loads(text) for name, text in files.items()} == {
        name: json.loads(text) for name, text in found.items()
    }
    assert all(one["metadata"]["labels"]["grafana_dashboard"] == "1" for one in made)
    for one in made:
        kubernetes_validate.validate(one, KUBERNETES, strict=True)


@pytest.mark.parametrize(("name", "kind"), [("podMonitors", "PodMonitor"), ("rules", "PrometheusRule")])
def test_without_prometheus_operator_its_objects_are_refused_by_name(
    template: Callable[..., Any], name: str, kind: str
):
    done = template("--set", f"monitoring.{name}.enabled=true")
    assert done.returncode != 0
    assert f"monitoring.{name}.enabled is true, and this cluster does not know {kind}" in done.stderr


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("--set", "replica=2"), "replica"),
        (("--set", "operator.worker=2"), "worker"),
        (("--set", "replicas=two"), "replicas"),
        (("--set", "replicas=0"), "minimum"),
        (("--set", "rbac.scope=galaxy"), "scope"),
        (("--set", "operator.gpuMemory=lots"), "gpuMemory"),
        (("--set", "monitoring.alerts.enabled=true"), "alerts"),
        (("--set", "monitoring.podMonitors.interval=often"), "interval"),
        (("--set", "rbac.scope=namespaces"), "rbac.scope is namespaces: list them in rbac.namespaces"),
        (("--set", "rbac.namespaces={a}"), "rbac.namespaces is only for rbac.scope: namespaces"),
        (("--set", "serviceAccount.create=false"), "set serviceAccount.name to one that exists"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_a_wrong_value_is_refused_by_name(
    template: Callable[..., Any], words: tuple[str, ...], complaint: str
):
    done = template(*words)
    assert done.returncode != 0
    assert complaint in done.stderr


def leaves(values: Any, path: str = ""):
    if isinstance(values, dict) and values:
        for name, below in values.items():
            yield from leaves(below, f"{path}.{name}")
    else:
        yield path


def test_every_value_has_an_effect():
    templates = "\n".join(path.read_text() for path in (CHART / "templates").iterdir())
    for path in leaves(yaml.safe_load((CHART / "values.yaml").read_text())):
        parts = path.strip(".").split(".")
        used = (".Values." + ".".join(parts[:length]) for length in range(len(parts), 0, -1))
        assert any(re.search(rf"{re.escape(one)}\b(?!\.)", templates) for one in used), (
            f"no template reads {path}"
        )


def test_chart_version_is_the_project_version():
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    project = (CHART.parents[1] / "pyproject.toml").read_text()
    assert f'version = "{chart["version"]}"' in project
    assert chart["appVersion"] == chart["version"]


def test_network_policies_select_the_pods_that_are_made(render: Render):
    from sftjob_operator.api import names

    assert of_kind(render(), "NetworkPolicy") == []
    manifests = render(*NAMESPACES, *POLICIES)
    policies = {
        (one["metadata"]["namespace"], one["metadata"]["name"]): one
        for one in of_kind(manifests, "NetworkPolicy")
    }
    assert set(policies) == {
        ("sftjob-system", "sftjob"),
        *(
            (namespace, f"sftjob-{kind}")
            for namespace in ("team-a", "team-b")
            for kind in ("training", "prepare")
        ),
    }
    operator = policies["sftjob-system", "sftjob"]["spec"]["podSelector"]["matchLabels"].items()
    assert operator <= operator_pod(manifests)["metadata"]["labels"].items()
    for kind, role in (("training", names.ROLE_TRAIN), ("prepare", names.ROLE_PREPARE)):
        chosen = policies["team-a", f"sftjob-{kind}"]["spec"]["podSelector"]["matchLabels"]
        assert chosen.items() <= names.labels("bot", role).items()
    only_gang = policies["team-a", "sftjob-training"]["spec"]["egress"][1]["to"]
    assert only_gang == [{"podSelector": policies["team-a", "sftjob-training"]["spec"]["podSelector"]}]


def test_with_cluster_scope_the_namespaces_of_network_policies_are_named(render: Render):
    words = (*POLICIES, "--set", "networkPolicy.namespaces={team-c}")
    found = {one["metadata"]["namespace"] for one in of_kind(render(*words), "NetworkPolicy")}
    assert found == {"sftjob-system", "team-c"}
