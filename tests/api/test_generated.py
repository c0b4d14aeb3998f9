"""What is generated from the models is committed, complete, and a schema as Kubernetes wants it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from schemas import nodes
from sftjob_operator.api import generate, reference, status, v1alpha1
from sftjob_operator.api.crd import crd
from sftjob_operator.api.schema import structural_schema

VERSION = crd()["spec"]["versions"][0]
ROOT_SCHEMA = VERSION["schema"]["openAPIV3Schema"]
SPEC = list(nodes(ROOT_SCHEMA["properties"]["spec"], "spec"))
STATUS = list(nodes(ROOT_SCHEMA["properties"]["status"], "status"))


def test_the_generated_files_are_what_the_models_say():
    assert generate.drifted() == []


def test_a_file_that_drifted_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "examples").mkdir()
    (tmp_path / generate.EXAMPLE).write_text((generate.ROOT / generate.EXAMPLE).read_text())
    generate.write(tmp_path)
    (tmp_path / "docs/api.md").write_text("by hand")
    monkeypatch.setattr(generate.drifted, "__defaults__", (tmp_path,))
    assert generate.main(["--check"]) == 1
    assert capsys.readouterr().err.startswith("docs/api.md is not what the models say: run `make generate`")


def test_the_chart_carries_the_same_definition():
    first, second = (text for name, text in generate.files().items() if name.endswith(generate.CRD_FILE))
    assert first == second
    assert yaml.safe_load(first) == crd()


def test_every_field_is_described():
    fields = [(path, node) for path, node in [*SPEC, *STATUS] if not path.endswith("]")]
    assert [path for path, node in fields if len(node.get("description", "")) < 6] == []


def test_the_schema_is_structural():
    forbidden = {"$ref", "$defs", "title", "const", "default", "oneOf", "allOf", "not"}
    for path, node in [*SPEC, *STATUS]:
        assert not forbidden & node.keys(), path
        assert not {"properties", "additionalProperties"} <= node.keys(), path
        either = node.get("x-kubernetes-int-or-string")
        assert "type" in node or either or node.get("x-kubernetes-preserve-unknown-fields"), path
        assert "anyOf" not in node or either, path


def test_what_users_write_is_bounded_or_the_cost_of_cel_could_not_be():
    for path, node in SPEC:
        if node.get("type") == "array":
            assert "maxItems" in node, path
        if node.get("type") == "string":
            assert "maxLength" in node or "enum" in node, path
        if node.get("additionalProperties", {}).get("type"):
            assert "maxProperties" in node, path


def test_a_described_default_is_the_default():
    checked = 0
    for section in reference._sections(v1alpha1.Spec, structural_schema(v1alpha1.Spec), "").values():
        for name, info in reference._fields(section.model):
            default = reference._default(info).strip("`").replace('"', "")
            only_one = len(section.schema["properties"][name].get("enum", "..")) == 1
            if info.is_required() or only_one or default in ("", "false"):
                continue
            where = f"{section.model.__name__}.{name}"
            said = re.search(r"Default (\[.*?\]|[^\s:;,]+?)[.,:;]?(\s|$)", info.description or "")
            assert said, f"{where} has the default {default} and does not say so"
            assert said[1] == default, where
            checked += 1
    assert checked > 20


def test_every_rule_says_what_to_do_about_which_field():
    for path, node in [("", ROOT_SCHEMA), *SPEC]:
        for rule in node.get("x-kubernetes-validations", []):
            message = rule["message"]
            assert len(message) > 20, path
            # The API server names the path of a field's own rule, but `<nil>` for a rule of the whole object.
            assert path or re.match(r"(metadata\.name|spec\.\w+)\b", message), message


def test_every_condition_type_is_explained():
    assert tuple(reference.CONDITION_MEANINGS) == status.CONDITION_TYPES


def test_the_reference_names_every_field():
    page = generate.files()["docs/api.md"]
    for path, _ in [*SPEC, *STATUS]:
        name = path.rpartition(".")[2].removesuffix("[]")
        assert f"`{name}`" in page or f"`{path}`" in page, path


def test_columns_and_subresources_read_what_exists():
    known = {path for path, _ in nodes(ROOT_SCHEMA)}
    for column in VERSION["additionalPrinterColumns"]:
        path = column["jsonPath"].lstrip(".").split("[")[0]
        assert path in known or path == "metadata.creationTimestamp", column
    for path in VERSION["subresources"]["scale"].values():
        assert path.lstrip(".") in known
    shown = [column["name"] for column in VERSION["additionalPrinterColumns"] if not column.get("priority")]
    assert shown == ["Phase", "Step", "Loss", "Tok/s", "ETA", "Ckpt", "Restarts", "Age"]
