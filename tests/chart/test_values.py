"""values.yaml and values.schema.json: every value is known, explained and used, and no other is taken."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

import values_readme
from rendering import CHART, SCHEMA, VALUES, refusal
from schemas import nodes

# Passed on to Kubernetes or Helm as they are: the API server knows what they hold.
PASSED_ON = {"global", "affinity.nodeAffinity", "affinity.podAffinity", "affinity.podAntiAffinity"}
EVERY_POLICY = "admission.policies.*"
OBJECTS = [(path, found) for path, found in nodes(SCHEMA, each=".*") if found.get("type") == "object"]


def leaves(values: Any, path: str = "") -> Iterator[str]:
    if isinstance(values, dict) and values:
        for name, below in values.items():
            yield from leaves(below, f"{path}.{name}".lstrip("."))
    else:
        yield path


def in_schema(schema: dict[str, Any], path: str = "") -> Iterator[str]:
    """Paths of the values that the schema knows by name; an object of free keys is one value."""
    for name, below in schema["properties"].items():
        where = f"{path}.{name}".lstrip(".")
        if below.get("properties"):
            yield from in_schema(below, where)
        else:
            yield where


def test_no_object_takes_a_key_that_it_does_not_know():
    for path, schema in OBJECTS:
        if path not in PASSED_ON:
            free = schema.get("additionalProperties")
            assert free is False or (isinstance(free, dict) and "properties" not in schema), path


def test_every_value_is_in_the_schema():
    known = set(in_schema(SCHEMA))
    for path in leaves(VALUES):
        group = any(one.startswith(f"{path}.") for one in known)
        assert group or path in known or path.rpartition(".")[0] in known, path


def test_every_key_of_the_schema_is_a_value():
    stated = set(leaves(VALUES))
    whole = {"podSecurityContext", "affinity", "resources"}  # of Kubernetes; the defaults need not name all
    for path in in_schema(SCHEMA):
        if path not in PASSED_ON and path.partition(".")[0] not in whole:
            assert path in stated or any(one.startswith(f"{path}.") for one in stated), path


def test_every_value_is_read_by_a_template():
    templates = "\n".join(path.read_text() for path in (CHART / "templates").rglob("*.*"))
    for path in leaves(VALUES):
        parts = path.split(".")
        used = (".Values." + ".".join(parts[:length]) for length in range(len(parts), 0, -1))
        assert any(re.search(rf"{re.escape(name)}\b(?!\.)", templates) for name in used), (
            f"no template reads {path}"
        )


def test_every_value_that_a_template_reads_exists():
    for path in (CHART / "templates").rglob("*.*"):
        for name in re.findall(r"\.Values\.([A-Za-z.]+)", path.read_text()):
            found: Any = VALUES
            for part in name.split("."):
                assert part in found, f"{path.name} reads {name}"
                found = found[part]


@pytest.mark.parametrize(
    ("value", "complaint"),
    [
        ("replica=2", "replica"),
        ("operator.worker=2", "worker"),
        ("replicas=two", "replicas"),
        ("replicas=0", "minimum"),
        ("rbac.scope=galaxy", "scope"),
        ("operator.gpuMemory=lots", "gpuMemory"),
        ("collection.limit=lots", "limit"),
        ("collection.unusedDays=-1", "unusedDays"),
        ("collection.checkpoints=true,collection.unusedDays=0", "unusedDays"),
        ("monitoring.alerts.enabled=true", "alerts"),
        ("monitoring.podMonitors.interval=often", "interval"),
        ("podSecurityContext.runAsRoot=true", "runAsRoot"),
        ("tolerations[0].keys=a", "keys"),
        ("affinity.nodes=a", "nodes"),
        ("topologySpreadConstraints[0].topologyKey=zone", "maxSkew"),
        ("admission.enabled=true", "enabled"),
        ("quotas.gpu=8", "gpu"),
        ("quotas.jobs=-1", "minimum"),
        ("quotas.namespaces.team-a.gpus=many", "gpus"),
        ("quotas.namespaces.team-a.nodes=1", "nodes"),
    ],
)
def test_a_wrong_value_is_refused_by_name(value: str, complaint: str):
    assert complaint in refusal("--set", value)


def test_the_readme_is_what_the_values_say():
    assert values_readme.main(["--check"]) == 0


def test_the_readme_explains_every_value_and_every_field_of_a_policy():
    readme = (CHART / "README.md").read_text()
    rows = {value.path for value in values_readme.values((CHART / "values.yaml").read_text())}
    for path in leaves(VALUES):
        assert (
            path in rows
            or path.rpartition(".")[0] in rows
            or path.rpartition(".")[0].rpartition(".")[0] in rows
        ), path
    policy = next(schema for path, schema in OBJECTS if path == EVERY_POLICY)
    for name, field in policy["properties"].items():
        assert f"| `{name}` | {field['type']} | {field['description']} |" in readme


def test_a_value_without_a_comment_is_an_error_by_name():
    with pytest.raises(ValueError, match="values.yaml: b.c has no comment above it"):
        values_readme.values("# First.\na: 1\nb:\n  c: 2\n  # Third.\n  d: 3\n")


def test_comments_of_several_lines_are_one_sentence_and_examples_are_left_out():
    source = "# A group.\na:\n  # Of two\n  # lines.\n  #   b: [example]\n  b: []\n"
    assert values_readme.values(source) == [("a", "", "A group."), ("a.b", "[]", "Of two lines.")]


def test_chart_version_is_the_project_version():
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    project = (CHART.parents[1] / "pyproject.toml").read_text()
    assert f'version = "{chart["version"]}"' in project
    assert chart["appVersion"] == chart["version"]
