"""The examples are what they say: complete, without a misspelled field, and accepted by the schema."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from ruamel.yaml import YAML

from sftjob_operator.api.crd import crd
from sftjob_operator.api.v1alpha1 import SFTJob
from sftjob_operator.cluster.local.rules import violations
from sftjob_operator.cluster.local.schema import unknown_fields, validate

ROOT = Path(__file__).resolve().parents[2]
SCHEMA = crd()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
EXAMPLES = sorted((ROOT / "examples").glob("*.yaml"))
NAMES = {"bilingual", "inline", "long-context", "lora", "quickstart-gpu", "support-bot"}


def load(path: Path) -> dict[str, Any]:
    return YAML(typ="safe", pure=True).load(path)


def example(name: str) -> dict[str, Any]:
    return load(ROOT / "examples" / f"{name}.yaml")


def test_the_examples_are_there():
    assert {path.stem for path in EXAMPLES} == NAMES


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_has_no_field_that_does_not_exist(path: Path):
    job = SFTJob.model_validate(load(path), extra="forbid")
    assert job.api_version == "sftjob.dev/v1alpha1"
    assert list(unknown_fields(load(path)["spec"], SCHEMA["properties"]["spec"])) == []


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_is_accepted_by_the_schema_and_its_rules(path: Path):
    manifest = load(path)
    assert [
        str(problem) for problem in [*validate(manifest, SCHEMA), *violations(manifest, None, SCHEMA)]
    ] == []


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_begins_by_saying_what_it_is(path: Path):
    assert re.match(r"# [A-Z][^\n]{30,}", path.read_text())


def test_a_misspelled_field_would_be_seen():
    manifest = example("quickstart-gpu")
    manifest["spec"]["workers"]["gpus"] = 8
    with pytest.raises(ValidationError, match=r"spec\.workers\.gpus"):
        SFTJob.model_validate(manifest, extra="forbid")


def test_inline_rows_are_json_lines_of_messages():
    (source,) = example("inline")["spec"]["data"]["train"]
    rows = [json.loads(line) for line in source["inline"].splitlines()]
    assert len(rows) >= 5
    assert all(row["messages"][-1]["role"] == "assistant" for row in rows)


def test_the_support_bot_finds_the_data_of_the_examples():
    data = example("support-bot")["spec"]["data"]
    paths = [source["path"] for source in (*data["train"], *data["eval"]["sources"])]
    assert all((ROOT / "examples" / "data" / Path(path).name).exists() for path in paths)
    assert all(Path(path).parent == Path("datasets") for path in paths)
