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


HEAD = "apiVersion: sftjob.dev/v1alpha1\nkind: SFTJob\n"


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


@pytest.mark.parametrize(
    ("value", "words"),
    [
        *(
            (word, f"{word} means true to kubectl: put it in quotes, or write true")
            for word in ("yes", "On", "Y")
        ),
        *(
            (word, f"{word} means false to kubectl: put it in quotes, or write false")
            for word in ("no", "OFF", "n")
        ),
        ("010", "a number with a leading zero is octal for kubectl"),
        ("2030-01-01", "a date, or a value with a YAML tag: put it in quotes"),
        ("!!str 1", "a date, or a value with a YAML tag: put it in quotes"),
    ],
)
def test_what_kubectl_would_read_as_something_else_is_refused_by_name(file: Path, value: str, words: str):
    file.write_text(MINIMAL.replace("claimName: w", f"claimName: {value}"))
    with pytest.raises(CliError) as error:
        load(file)
    assert f"{file} line 10: spec.workspace.claimName: {words}" in str(error.value)


def test_quoted_words_are_words_and_numbers_have_the_usual_forms(file: Path):
    numbers = "seed: 0x1F, epochs: 1_0, learningRate: 0.5, maxGradNorm: 0"
    file.write_text(MINIMAL.replace("claimName: w", "claimName: 'no'") + f"  training: {{{numbers}}}\n")
    spec = load(file)["spec"]
    assert spec["workspace"]["claimName"] == "no"
    assert spec["training"] == {"seed": 31, "epochs": 10, "learningRate": 0.5, "maxGradNorm": 0}


def test_what_a_cluster_has_added_is_dropped(file: Path):
    added = "uid: x\n  generation: 4\n  deletionTimestamp: '2030-01-01T00:00:00Z'\n  finalizers: [a]\n  managedFields: [{}]"
    file.write_text(MINIMAL.replace("name: bot", f"name: bot\n  labels: {{team: a}}\n  {added}"))
    assert load(file)["metadata"] == {"name": "bot", "namespace": "default", "labels": {"team": "a"}}


@pytest.mark.parametrize("namespace", ["../../../../escape", "a/b", "A", "", "a" * 64])
def test_a_namespace_that_is_none_is_refused(file: Path, namespace: str):
    file.write_text(MINIMAL.replace("name: bot", f"name: bot\n  namespace: '{namespace}'"))
    if namespace:
        with pytest.raises(
            CliError, match="line 5: metadata.namespace is .*: use at most 63 lower-case letters"
        ):
            load(file)
        file.write_text(MINIMAL)
        with pytest.raises(CliError, match="--namespace is .*: use at most 63 lower-case letters"):
            load(file, namespace)
    else:
        assert load(file)["metadata"]["namespace"] == "default"


def test_the_namespace_is_the_files_or_the_options_and_status_is_not_ours(file: Path):
    file.write_text(MINIMAL + "status: {phase: Lie}\n")
    assert load(file)["metadata"]["namespace"] == "default"
    assert load(file, "team")["metadata"]["namespace"] == "team"
    assert "status" not in load(file)
    file.write_text(MINIMAL.replace("name: bot", "name: bot\n  namespace: a"))
    assert load(file)["metadata"]["namespace"] == "a"
    with pytest.raises(CliError, match="metadata.namespace is a, but --namespace says b"):
        load(file, "b")


LAUGHS = (
    HEAD
    + "metadata: {name: bot}\nspec:\n  model: &a0 {path: m}\n"
    + "".join(f"  {name}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n, name in enumerate("bcdefghi", 1))
)


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
        (MINIMAL.replace("name: bot", "name: 123"), "line 4: metadata.name is 123, which is not text: put it in quotes"),
        (MINIMAL.replace("name: bot", "name: bot\n  labels: {a: 1}"), "line 5: metadata.labels.a is 1, which is not text"),
        (MINIMAL.replace("name: bot", "name: bot\n  labels: [a]"), "line 5: metadata.labels is a list: it is a mapping"),
        (MINIMAL.replace("name: bot", "name: bot\n  lables: {}"), "line 5: unknown field metadata.lables: did you mean labels?"),
        (HEAD + "metadata: [a]\n", "line 3: metadata is a list: it is a mapping"),
        (HEAD + "metadata: {name: bot}\nspec:\n", "line 4: spec is missing: it is a mapping with model"),
        (HEAD + "metadata: {name: bot}\nspec: [1]\n", "line 4: spec is a list: it is a mapping"),
        (HEAD + "metadata: {name: bot}\nspec: text\n", "line 4: spec is text: it is a mapping"),
        (MINIMAL + "  1: 2\n", "spec: the key 1 is not text: put it in quotes"),
        (MINIMAL + "  ~: 2\n", "spec: the key null is not text: put it in quotes"),
        (MINIMAL + "  workers: {<<: {nodse: 1}}\n", "line 11: unknown field spec.workers.nodse: did you mean nodes?"),
        (MINIMAL + "  training: {seed: 9223372036854775808}\n", "line 11: spec.training.seed: more than an integer of 64 bits holds"),
        (MINIMAL + "  training: {learningRate: .nan}\n", "line 11: spec.training.learningRate: not a finite number"),
        (MINIMAL + f"  prepare: {'[' * 600}{']' * 600}\n", "nested too deeply: an SFTJob has no more than 64 levels"),
        (MINIMAL + f"  prepare: {'[' * 100}{']' * 100}\n", "line 11: spec.prepare[0]: nested too deeply"),
        (LAUGHS, "with what its aliases repeat, the file has more than 100,000 values"),
        (MINIMAL + "  data: &again {train: [*again]}\n".replace("  data", "  prepare"), "unknown field spec.prepare.train"),
        ("#" * (4 << 20), "has 4 MiB: an SFTJob has less than 3"),
        (MINIMAL + f"  training: {{seed: {'9' * 100_000}}}\n", "not YAML"),
        (MINIMAL + "  prepare: {day: 2030-13-01}\n", "not YAML: month must be in 1..12"),
    ],
    ids=lambda value: None,
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
