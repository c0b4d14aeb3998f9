"""templates/prometheusrule.yaml: the alerts, for Prometheus' operator."""

from __future__ import annotations

import yaml

from rendering import CHART, MONITORING_APIS, of_kind, refusal, render


def test_there_is_none_unless_it_is_wanted():
    assert of_kind(render(), "PrometheusRule") == []


def test_the_rule_is_the_plain_file_with_links_that_lead_somewhere():
    link = "monitoring.rules.enabled=true,monitoring.rules.runbookUrl=https://docs.example.com/sftjob/"
    (rule,) = of_kind(render("--set", link, *MONITORING_APIS), "PrometheusRule")
    plain = (CHART / "files/rules/sftjob.yaml").read_text()
    assert rule["spec"] == yaml.safe_load(plain.replace("RUNBOOKS/", "https://docs.example.com/sftjob/"))


def test_prometheus_finds_it_by_the_platforms_labels():
    labels = "monitoring.rules.enabled=true,monitoring.rules.labels.release=prometheus"
    (rule,) = of_kind(render("--set", labels, *MONITORING_APIS), "PrometheusRule")
    assert rule["metadata"]["labels"]["release"] == "prometheus"


def test_without_prometheus_operator_it_is_refused_by_name():
    said = refusal("--set", "monitoring.rules.enabled=true")
    assert "monitoring.rules.enabled is true, and this cluster does not know PrometheusRule" in said
