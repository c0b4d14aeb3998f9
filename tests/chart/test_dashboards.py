"""templates/dashboards.yaml: Grafana dashboards as ConfigMaps."""

from __future__ import annotations

import json

from rendering import CHART, of_kind, render, values


def test_there_are_none_unless_they_are_wanted():
    assert of_kind(render(), "ConfigMap") == []


def test_they_are_the_generated_files_under_the_label_that_grafana_looks_for():
    made = of_kind(render("--set", "monitoring.dashboards.enabled=true"), "ConfigMap")
    files = {path.name: path.read_text() for path in (CHART / "files/dashboards").glob("*.json")}
    assert len(files) == 3
    found = {name: text for config in made for name, text in config["data"].items()}
    assert {f"sftjob-{name}": json.loads(text) for name, text in files.items()} == {
        name: json.loads(text) for name, text in found.items()
    }
    assert all(config["metadata"]["labels"]["grafana_dashboard"] == "1" for config in made)


def test_labels_and_annotations_are_the_platforms():
    settings = {"enabled": True, "labels": {"dashboards": "yes"}, "annotations": {"grafana_folder": "SFTJob"}}
    for config in of_kind(render(*values(monitoring__dashboards=settings)), "ConfigMap"):
        assert config["metadata"]["labels"]["dashboards"] == "yes"
        assert config["metadata"]["annotations"] == {"grafana_folder": "SFTJob"}
