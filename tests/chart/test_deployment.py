"""templates/deployment.yaml: the operator's pods."""

from __future__ import annotations

import pytest

from rendering import NAMESPACES, environment, of_kind, operator_pod, render, values
from sftjob_operator.settings import Settings

HARDENED = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
}


def test_one_leads_and_one_stands_by():
    (deployment,) = of_kind(render(), "Deployment")
    assert deployment["spec"]["replicas"] == 2
    assert deployment["spec"]["strategy"]["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}


def test_the_operator_understands_every_variable_it_is_given():
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


def test_chart_and_code_agree_on_defaults():
    settings, defaults = Settings.from_environment(environment(render())), Settings()
    same = ("workers", "resync_seconds", "log_format", "log_level", "gpu_memory", "namespaces", "http_port")
    collection = ("collect_unused_days", "collect_limit", "collect_checkpoints")
    for name in (*same, *collection, "pod_security", "quotas"):
        assert getattr(settings, name) == getattr(defaults, name), name


def test_what_preparations_collect_is_a_value():
    given = "collection.unusedDays=7,collection.limit=2Ti,collection.checkpoints=true"
    settings = Settings.from_environment(environment(render("--set", given)))
    found = (settings.collect_unused_days, settings.collect_limit, settings.collect_checkpoints)
    assert found == (7, 2**41, True)


def test_values_of_a_release_that_knew_of_neither_can_be_used_again():
    settings = Settings.from_environment(environment(render("--set", "collection=null,quotas=null")))
    assert settings.quotas == Settings().quotas
    namespaces = ("--set", "rbac.scope=namespaces,rbac.namespaces={a},quotas=null")
    assert render(*namespaces)


def test_quotas_arrive_as_they_are_written():
    quotas = {"jobs": 2, "namespaces": {"team-a": {"jobs": 10, "gpus": 1000000}, "platform": {}}}
    found = Settings.from_environment(environment(render(*values(quotas=quotas)))).quotas
    assert (found.of("any").jobs, found.of("any").gpus) == (2, None)
    assert (found.of("team-a").jobs, found.of("team-a").gpus) == (10, 1_000_000)
    assert not found.of("platform").is_set


def test_its_root_file_system_is_read_only_and_only_tmp_is_writable():
    spec = operator_pod(render())["spec"]
    (container,) = spec["containers"]
    assert container["securityContext"] == HARDENED
    assert container["volumeMounts"] == [{"name": "tmp", "mountPath": "/tmp"}]
    assert spec["volumes"][0].keys() == {"name", "emptyDir"}


def test_it_asks_for_the_token_that_its_account_gives_to_nobody_unasked():
    assert operator_pod(render())["spec"]["automountServiceAccountToken"] is True


def test_probes_and_scrapes_go_where_the_operator_listens():
    pod = operator_pod(render())
    (container,) = pod["spec"]["containers"]
    (port,) = container["ports"]
    assert port["containerPort"] == Settings().http_port
    for probe, path in (
        ("startupProbe", "/healthz"),
        ("livenessProbe", "/healthz"),
        ("readinessProbe", "/readyz"),
    ):
        assert container[probe]["httpGet"] == {"path": path, "port": "http"}
    annotations = pod["metadata"]["annotations"]
    assert annotations["prometheus.io/port"] == str(Settings().http_port)
    assert annotations["prometheus.io/path"] == "/metrics"


def test_it_has_a_minute_to_start_and_is_watched_from_then_on():
    (container,) = operator_pod(render())["spec"]["containers"]
    start = container["startupProbe"]
    assert start["periodSeconds"] * start["failureThreshold"] == 60
    assert "initialDelaySeconds" not in container["livenessProbe"]


def test_without_annotations_prometheus_has_to_be_told_otherwise():
    annotations = operator_pod(render("--set", "prometheus.annotations=false"))["metadata"]["annotations"]
    assert not [name for name in annotations if name.startswith("prometheus.io/")]


def test_replicas_are_spread_over_hosts_where_that_can_be_done():
    manifests = render()
    (spread,) = operator_pod(manifests)["spec"]["topologySpreadConstraints"]
    assert (spread["topologyKey"], spread["whenUnsatisfiable"]) == (
        "kubernetes.io/hostname",
        "ScheduleAnyway",
    )
    labels = operator_pod(manifests)["metadata"]["labels"]
    assert spread["labelSelector"]["matchLabels"].items() <= labels.items()
    assert spread["matchLabelKeys"] == ["pod-template-hash"], "or a rollout counts the old pods"


def test_another_spread_gets_the_operators_labels():
    zones = {"maxSkew": 1, "topologyKey": "topology.kubernetes.io/zone", "whenUnsatisfiable": "DoNotSchedule"}
    manifests = render(*values(topologySpreadConstraints=[zones]))
    (spread,) = operator_pod(manifests)["spec"]["topologySpreadConstraints"]
    assert spread.items() >= zones.items()
    assert spread["labelSelector"]["matchLabels"]["app.kubernetes.io/instance"] == "sftjob"
    without = operator_pod(render(*values(topologySpreadConstraints=[])))
    assert "topologySpreadConstraints" not in without["spec"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("nodeSelector", {"disk": "ssd"}),
        ("tolerations", [{"key": "system", "operator": "Exists"}]),
        (
            "affinity",
            {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": []}}},
        ),
        ("priorityClassName", "system-cluster-critical"),
        ("imagePullSecrets", [{"name": "regcred"}]),
    ],
)
def test_where_it_runs_is_the_platforms(name: str, value: object):
    assert operator_pod(render(*values(**{name: value})))["spec"][name] == value


def test_labels_and_annotations_of_the_platform_come_beside_ours():
    metadata = operator_pod(render("--set", "podLabels.team=ml,podAnnotations.note=x"))["metadata"]
    assert metadata["labels"].items() >= {"team": "ml", "app.kubernetes.io/name": "sftjob"}.items()
    assert metadata["annotations"]["note"] == "x"


def test_the_image_has_the_charts_version_unless_a_tag_is_named():
    (container,) = operator_pod(render())["spec"]["containers"]
    assert container["image"] == "sftjob/operator:0.1.0"
    other = operator_pod(
        render("--set", "image.repository=r.example.com/op,image.tag=x,image.pullPolicy=Always")
    )
    (container,) = other["spec"]["containers"]
    assert (container["image"], container["imagePullPolicy"]) == ("r.example.com/op:x", "Always")


def test_resources_are_the_platforms():
    (container,) = operator_pod(render("--set", "resources.limits.memory=2Gi"))["spec"]["containers"]
    assert container["resources"]["limits"] == {"memory": "2Gi"}
