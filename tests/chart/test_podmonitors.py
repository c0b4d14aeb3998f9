"""templates/podmonitors.yaml: scrapes, for Prometheus' operator."""

from __future__ import annotations

import yaml

from rendering import CHART, MONITORING_APIS, NAMESPACES, of_kind, operator_pod, refusal, render

WANTED = ("--set", "monitoring.podMonitors.enabled=true", *MONITORING_APIS)


def test_there_are_none_unless_they_are_wanted():
    assert of_kind(render(), "PodMonitor") == []


def test_the_operators_finds_its_port_and_labels():
    manifests = render(*WANTED)
    operator, _ = of_kind(manifests, "PodMonitor")
    pod = operator_pod(manifests)
    assert operator["spec"]["selector"]["matchLabels"].items() <= pod["metadata"]["labels"].items()
    (endpoint,) = operator["spec"]["podMetricsEndpoints"]
    assert endpoint["port"] == pod["spec"]["containers"][0]["ports"][0]["name"]
    assert endpoint["honorLabels"], "else the namespace of an SFTJob becomes that of the operator"


def test_the_trainers_finds_training_pods_and_no_others():
    _, trainers = of_kind(render(*WANTED), "PodMonitor")
    golden = yaml.safe_load((CHART.parents[1] / "tests/core/golden/gpu-minimal/expected.yaml").read_text())
    made = [manifest for effects in golden.values() for effect in effects for manifest in effect.values()]
    pods = [manifest["spec"]["template"] for manifest in made if manifest["kind"] == "Job"]
    wanted = trainers["spec"]["selector"]["matchLabels"].items()
    found = [pod for pod in pods if wanted <= pod["metadata"]["labels"].items()]
    assert len(found) == 1, "training pods only: a prepare pod serves no metrics"
    ports = [port["name"] for port in found[0]["spec"]["containers"][0]["ports"]]
    assert trainers["spec"]["podMetricsEndpoints"][0]["port"] in ports


def test_it_looks_where_the_operator_works():
    assert of_kind(render(*WANTED), "PodMonitor")[1]["spec"]["namespaceSelector"] == {"any": True}
    within = of_kind(render(*NAMESPACES, *WANTED), "PodMonitor")[1]
    assert within["spec"]["namespaceSelector"] == {"matchNames": ["team-a", "team-b"]}


def test_interval_and_labels_are_the_platforms():
    more = ("--set", "monitoring.podMonitors.interval=5s,monitoring.podMonitors.labels.release=prometheus")
    for monitor in of_kind(render(*WANTED, *more), "PodMonitor"):
        assert monitor["metadata"]["labels"]["release"] == "prometheus"
        assert monitor["spec"]["podMetricsEndpoints"][0]["interval"] == "5s"


def test_without_prometheus_operator_they_are_refused_by_name():
    said = refusal("--set", "monitoring.podMonitors.enabled=true")
    assert "monitoring.podMonitors.enabled is true, and this cluster does not know PodMonitor" in said
