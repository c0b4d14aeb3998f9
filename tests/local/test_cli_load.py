"""Reading the YAML as kubectl does, with words for a person about everything that is wrong in it."""

from __future__ import annotations

from pathlib import Path

import pytest

from sftjob_operator.cli.errors import CliError
from sftjob_operator.cli.load import load

MINIMAL = """\
apiVersion: sftjob.dev/v1alpha1
kind: SFTJob
metadata:
  name: bot
spec:
  model: {path: models/base}
  data:
    train:
    - path: a.jsonl
  workspace: {claimName: w}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "job.yaml"


def test_numbers_are_numbers_as_kubectl_reads_them(file: Path):
    file.write_text(
        MINIMAL + "  training: {learningRate: 2e-5, optimizer: {betas: [0.9, 0.98], eps: 1E-6}, epochs: 3}\n"
    )
    training = load(file)["spec"]["training"]
    assert training == {"learningRate": 2e-5, "optimizer": {"betas": [0.9, 0.98], "eps": 1e-6}, "epochs": 3}
    assert {type(value) for value in training["optimizer"]["betas"]} == {float}


def test_words_that_were_booleans_once_stay_words(file: Path):
    file.write_text(MINIMAL.replace("claimName: w", "claimName: no") + "  suspend: true\n")
    spec = load(file)["spec"]
    assert (spec["workspace"]["claimName"], spec["suspend"]) == ("no", True)


def test_the_namespace_is_the_files_or_the_options_and_status_is_not_ours(file: Path):
    file.write_text(MINIMAL + "status: {phase: Lie}\n")
    assert load(file)["metadata"]["namespace"] == "default"
    assert load(file, "team")["metadata"]["namespace"] == "team"
    assert "status" not in load(file)
    file.write_text(MINIMAL.replace("name: bot", "name: bot\n  namespace: a"))
    assert load(file)["metadata"]["namespace"] == "a"
    with pytest.raises(CliError, match="metadata.namespace is a, but --namespace says b"):
        load(file, "b")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (MINIMAL + "  training: {learning_rate: 1}\n", "line 11: unknown field spec.training.learning_rate: did you mean learningRate?"),
        (MINIMAL + "  Workers: {}\n", "line 11: unknown field spec.Workers: did you mean workers?"),
        (MINIMAL.replace("path: a.jsonl", "file: a.jsonl"), "line 9: unknown field spec.data.train[0].file: valid here: columns, format"),
        (MINIMAL + "extra: 1\n", "line 11: unknown field extra: valid here: apiVersion, kind, metadata, spec, status"),
        (MINIMAL + "  training: {epochs: 1, epochs: 2}\n", 'line 11: found duplicate key "epochs"'),
        (MINIMAL + "  training: {epochs: 1\n", "line 12: not YAML: "),
        (MINIMAL + "---\n" + MINIMAL, "2 documents; give one SFTJob per file"),
        ("", "the file is empty"),
        ("- 1\n", "an SFTJob is a mapping"),
        ("a: 1\n", "apiVersion is missing: set apiVersion: sftjob.dev/v1alpha1"),
        (MINIMAL.replace("kind: SFTJob", "kind: Job"), "kind is Job: set kind: SFTJob"),
        (MINIMAL.replace("  name: bot", "  labels: {}"), "metadata.name is missing"),
    ],
    ids=["snake-case", "capital", "in-a-list", "top-level", "twice", "broken", "two", "empty", "list", "no-kind", "kind", "name"],
)  # fmt: skip
def test_what_is_wrong_is_said_with_its_line_and_its_fix(file: Path, text: str, words: str):
    file.write_text(text)
    with pytest.raises(CliError) as error:
        load(file)
    assert str(error.value).startswith(f"{file}")
    assert words in str(error.value)
    assert error.value.code == 2


def test_all_unknown_fields_are_named_at_once(file: Path):
    file.write_text(MINIMAL + "  trainnig: {}\n  chekpoint: {}\n")
    with pytest.raises(CliError) as error:
        load(file)
    assert len(str(error.value).splitlines()) == 2


def test_a_missing_file_is_named(tmp_path: Path):
    with pytest.raises(CliError, match=r"nowhere\.yaml: no such file"):
        load(tmp_path / "nowhere.yaml")
