"""The command line itself: help, render, get, logs, delete, refusals, and what the table shows."""

from __future__ import annotations

import io
import itertools
import re
import shlex
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from ruamel.yaml import YAML
from typer.testing import CliRunner

from local.local_bench import Bench
from sft_trainer.config import PrepareConfig, TrainConfig
from sftjob_operator.api.v1alpha1 import SFTJob
from sftjob_operator.cli import app, furnish, table
from sftjob_operator.cli.errors import CliError
from sftjob_operator.cli.render import placeholder_facts
from sftjob_operator.cluster.local import rules
from sftjob_operator.cluster.local.store import Store

EXAMPLES = sorted((Path(__file__).resolve().parents[2] / "examples").glob("*.yaml"))
NOW = datetime(2030, 1, 1, 0, 2, 5, tzinfo=UTC)


def invoke(*words: str) -> Any:
    return CliRunner().invoke(app.app, list(words))


def failing(*words: str) -> str:
    """The sentence of the CliError."""
    done = invoke(*words)
    assert isinstance(done.exception, CliError), done.output
    return str(done.exception)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


@pytest.mark.parametrize(
    "command", [command.name or command.callback.__name__ for command in app.app.registered_commands]
)
def test_every_command_explains_itself(command: str):
    done = invoke(command, "--help")
    assert done.exit_code == 0
    assert "Usage" in done.output


def test_the_manual_has_a_section_for_every_command_and_names_its_options():
    text = (EXAMPLES[0].parents[1] / "docs" / "cli.md").read_text()
    sections = {
        title.lower(): body for title, _, body in (part.partition("\n") for part in text.split("\n## ")[1:])
    }
    for command in app.app.registered_commands:
        name = command.name or command.callback.__name__
        title = "suspend and resume" if name in ("suspend", "resume") else name
        assert title in sections, f"docs/cli.md has no section {name}"
        shown = invoke(name, "--help").output
        for option in set(re.findall(r"--[a-z][a-z-]+", shown)) - {
            "--help",
            "--output",
            "--image",
            "--max-new-tokens",
        }:
            short = {
                "--previous": "-p",
                "--follow": "-f",
                "--question": "-q",
                "--all-namespaces": "-A",
                "--namespace": "-n",
            }
            assert option in text or f"`{short.get(option, option)}" in text, (
                f"docs/cli.md does not know {name} {option}"
            )


def test_a_sentence_on_stderr_and_no_traceback(
    bench: Bench, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("sys.argv", ["sftjob", "run", "nowhere.yaml"])
    with pytest.raises(SystemExit) as ended:
        app.main()
    assert ended.value.code == 2
    assert capsys.readouterr().err == "error: nowhere.yaml: no such file\n"


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.name)
def test_render_prints_what_the_pods_will_read(file: Path):
    done = invoke("render", str(file))
    assert done.exit_code == 0, done.output
    documents = {
        (one["kind"], one["metadata"]["name"]): one
        for one in YAML(typ="safe", pure=True).load_all(done.output)
    }
    name = file.read_text().partition("name: ")[2].split()[0].strip("}")
    maps = [one["data"] for (kind, _), one in documents.items() if kind == "ConfigMap"]
    assert [key for data in maps for key in data] == ["prepare.json", "train.json", "hostfile"]
    PrepareConfig.model_validate_json(maps[0]["prepare.json"])
    train = TrainConfig.model_validate_json(maps[1]["train.json"])
    job = documents[("Job", f"{name}-1")]
    assert job["spec"]["completions"] == train.topology.nodes == len(maps[1]["hostfile"].splitlines())
    assert ("Service", name) in documents
    assert not [one for one in documents.values() if "ownerReferences" in one["metadata"]], (
        "or they are collected"
    )
    assert "placeholder facts" in done.output
    command = shlex.split(
        next(line for line in done.output.splitlines() if "--hostfile" in line).lstrip("# ")
    )
    assert command[:4] == ["deepspeed", "--hostfile", "/etc/sftjob/hostfile", "--no_ssh"]
    assert command[command.index("--master_addr") + 1] == maps[1]["hostfile"].split()[0]


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.name)
def test_no_example_trains_on_what_is_held_out_or_waits_for_a_secret(file: Path):
    spec = YAML(typ="safe", pure=True).load(file)["spec"]
    paths = [source["path"].removeprefix("datasets/") for source in spec["data"]["train"] if "path" in source]
    trained = {found.name for path in paths for found in (file.parent / "data").glob(path)}
    assert "support-eval.jsonl" not in trained
    assert "secretRef" not in spec["model"]


def test_render_takes_the_facts_of_a_prepared_job(bench: Bench):
    facts = placeholder_facts()
    file = bench.folder / "facts.json"
    file.write_text(
        facts.model_copy(
            update={"model": facts.model.model_copy(update={"directory": "models/mine"})}
        ).model_dump_json(by_alias=True)
    )
    done = invoke("render", str(bench.file()), "--facts", str(file))
    assert '"directory": "models/mine"' in done.output
    assert "placeholder" not in done.output
    file.write_text('{"model": {}}')
    assert "facts.json: model.directory: Field required" in failing(
        "render", str(bench.file()), "--facts", str(file)
    )


def test_render_refuses_what_the_operator_would(bench: Bench):
    bench.spec = {"training": {"globalBatchSize": 3}}
    assert "BatchNotDivisible: spec.training.globalBatchSize (3)" in failing("render", str(bench.file()))
    bench.spec = {"model": {}}
    assert "spec.model: set exactly one of uri, path" in failing("render", str(bench.file()))


def test_run_refuses_a_bad_spec_with_the_words_of_the_api_server(bench: Bench):
    bench.spec = {"training": {"epochs": 1, "maxSteps": 1}}
    words = failing("run", str(bench.file()), "--state", str(bench.state))
    assert 'SFTJob.sftjob.dev "bot" is invalid' in words
    assert "spec.training: set at most one of epochs, maxSteps" in words
    assert "no such directory" in failing(
        "run", str(bench.file()), "--workspace", str(bench.folder / "nowhere")
    )


def test_a_name_never_leaves_the_state_directory(bench: Bench):
    words = ("--workspace", str(bench.workspace), "--state", str(bench.state))
    assert "--namespace is" in failing("run", str(bench.file()), "-n", "../../../escape", *words)
    bench.spec = {"workspace": {"claimName": "../../escape"}}
    assert "spec.workspace.claimName ../../escape: a lowercase RFC 1123" in failing(
        "run", str(bench.file()), *words
    )
    with pytest.raises(ValueError, match="does not name a file"):
        Store(bench.state).put(
            {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "../x", "namespace": "n"}}
        )
    assert not list(bench.folder.rglob("*escape*"))


def test_a_negative_quantity_is_refused(bench: Bench):
    bench.spec = {"workers": {"nodes": 1, "gpusPerNode": 0, "sharedMemory": "-5Gi"}}
    words = "InvalidQuantity: spec.workers.sharedMemory: '-5Gi' is negative: write 0 or more"
    assert words in failing("render", str(bench.file()))
    assert words in failing(
        "run", str(bench.file()), "--state", str(bench.state), "--workspace", str(bench.workspace)
    )


def test_a_rule_that_cannot_be_evaluated_is_a_refusal_and_no_traceback():
    schema = {"type": "object", "x-kubernetes-validations": [{"rule": "self.a + 1 > 0", "message": "never"}]}
    (problem,) = rules.violations({"a": 2**63 - 1}, None, schema)
    assert "rule evaluation error" in str(problem)
    (problem,) = rules.violations({"a": 2**63}, None, schema)
    assert "rule evaluation error" in str(problem)


def test_a_job_for_gpus_is_refused_where_there_are_none(bench: Bench):
    manifest = bench.manifest()
    manifest["spec"]["workers"] = {"nodes": 2, "gpusPerNode": 8}
    job = SFTJob.model_validate(manifest)
    with pytest.raises(
        CliError,
        match=r"needs 2 x 8 GPUs, but this machine has no NVIDIA GPU: set spec.workers.gpusPerNode: 0",
    ):
        furnish.check_gpus(job, Path("job.yaml"), there=0)
    with pytest.raises(CliError, match="but this machine has 4:"):
        furnish.check_gpus(job, Path("job.yaml"), there=4)
    with pytest.raises(CliError, match=r"set spec.workers.nodes: 1 and spec.workers.gpusPerNode: 16"):
        furnish.check_gpus(job, Path("job.yaml"), there=16)
    manifest["spec"]["workers"] = {"nodes": 1, "gpusPerNode": 16}
    furnish.check_gpus(SFTJob.model_validate(manifest), Path("job.yaml"), there=16)
    del manifest["spec"]["workers"]
    with pytest.raises(CliError, match=r"needs 1 GPU \(1 is the default of gpusPerNode\)"):
        furnish.check_gpus(SFTJob.model_validate(manifest), Path("job.yaml"), there=0)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("hub", "NAME=FILE is needed"),
        ("../../hub={file}", "a lowercase RFC 1123 subdomain must consist of"),
        ("hub=nowhere", "nowhere cannot be read"),
        ("hub={file}", "line 2: KEY=VALUE is needed"),
    ],
)
def test_a_secret_is_a_name_and_a_file_of_lines(tmp_path: Path, words: str, message: str):
    file = tmp_path / "env"
    file.write_text("A=1\nnonsense\n")
    with pytest.raises(CliError, match=message):
        furnish.secret(words.format(file=file), "default")


@pytest.mark.processes
def test_get_logs_and_delete_see_what_run_has_left(bench: Bench):
    assert bench.run()[0] == 0
    state = ("--state", str(bench.state))
    assert "bot   Succeeded" in invoke("get", *state).output
    assert invoke("logs", "bot", *state).exit_code == 0
    words = failing("logs", "other", *state)
    assert words.startswith("there is no job other in namespace default of this machine (")
    assert words.endswith("; there are: bot")
    assert failing("logs", "bott", *state).endswith("; did you mean bot?")
    assert invoke("delete", "bot", *state).output == "bot is deleted; its files in the workspace stay\n"
    assert not list(bench.state.glob("objects/**/*.json"))
    assert not list(bench.state.glob("pods/default/*"))
    assert failing("delete", "bot", *state).endswith("; there are: none")
    assert (bench.job_folder / "export").is_dir()
    assert bench.run()[0] == 0


@pytest.mark.processes
def test_a_deletion_that_was_interrupted_is_finished_by_the_next(bench: Bench):
    assert bench.run()[0] == 0
    (bench.state / "objects" / "sftjob" / "default" / "bot.json").unlink()
    state = ("--state", str(bench.state))
    assert invoke("delete", "bot", *state).output == "bot is deleted; its files in the workspace stay\n"
    assert not list(bench.state.glob("objects/**/*.json"))


def test_a_deletion_leaves_what_another_job_uses(tmp_path: Path):
    state, uid = tmp_path / "state", itertools.count()
    for kind, name in (("PersistentVolumeClaim", "w"), ("Secret", "hub"), ("Secret", "theirs")):
        metadata = {"name": name, "namespace": "default", "uid": str(next(uid))}
        Store(state / "objects").put({"apiVersion": "v1", "kind": kind, "metadata": metadata})
    for name, secret in (("bot", "hub"), ("other", "theirs")):
        manifest = Bench(
            tmp_path, name, spec={"model": {"path": "a", "secretRef": {"name": secret}}}
        ).manifest()
        manifest["metadata"] |= {"namespace": "default", "uid": str(next(uid))}
        Store(state / "objects").put(manifest)
    assert invoke("delete", "bot", "--state", str(state)).exit_code == 0
    left = {path.stem for path in state.glob("objects/**/*.json")}
    assert left == {"w", "theirs", "other"}


def test_a_state_that_is_not_there_is_named(tmp_path: Path):
    assert "no local jobs here" in failing("get", "--state", str(tmp_path / "nowhere"))


# ------------------------------------------------------------------------- the table


def job(**status: Any) -> dict[str, Any]:
    return {"metadata": {"name": "bot", "creationTimestamp": "2030-01-01T00:00:00Z"}, "status": status}


RUNNING = {
    "type": "Running",
    "status": "True",
    "reason": "TrainingSteps",
    "message": "attempt 1, step 3 of 9",
}
PROGRESS = {
    "progressPercentage": 33,
    "step": 3,
    "totalSteps": 9,
    "display": "3/9",
    "loss": "1.5",
    "tokensPerSecond": 812,
    "eta": "1m",
}


def test_a_row_has_the_columns_of_kubectl():
    cells = table.row(job(phase="Running", progress=PROGRESS, lastVerifiedStep=2, restarts=1), NOW)
    assert cells == ("bot", "Running", "3/9", "1.5", "812", "1m", "2", "1", "2m05s")
    assert table.row(job(), NOW) == ("bot", "-", "-", "-", "-", "-", "-", "0", "2m05s")


def test_the_screen_shows_numbers_words_and_events():
    event = {
        "type": "Warning",
        "reason": "Crash",
        "message": "it broke",
        "lastTimestamp": "2030-01-01T00:01:00Z",
    }
    out = io.StringIO()
    shown = table.screen(
        job(phase="Running", progress=PROGRESS, conditions=[RUNNING]), [event], NOW, "stopping"
    )
    Console(file=out, width=120).print(shown)
    for words in ("3/9", "812", "TrainingSteps: attempt 1, step 3 of 9", "Crash: it broke", "stopping"):
        assert words in out.getvalue()
    bar = out.getvalue().splitlines()[2]
    assert bar.strip(" ━╸╺").rstrip() == "33 %", "the words have lines of their own"


def test_without_a_terminal_a_line_is_printed_when_something_changed():
    lines = table.Lines()
    first = lines.next(job(phase="Running", progress=PROGRESS, conditions=[RUNNING]), NOW)
    assert first is not None
    assert first.endswith(
        "Running  step 3/9  loss 1.5  tok/s 812  eta 1m  TrainingSteps: attempt 1, step 3 of 9"
    )
    assert lines.next(job(phase="Running", progress=PROGRESS, conditions=[RUNNING]), NOW) is None
    more = job(phase="Running", progress={**PROGRESS, "step": 4, "display": "4/9"}, conditions=[RUNNING])
    assert lines.next(more, NOW + timedelta(seconds=1)) is None, "steps are not news every second"
    assert "step 4/9" in str(lines.next(more, NOW + timedelta(seconds=6)))


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0s"), (59, "59s"), (61, "1m01s"), (3600, "1h00m"), (90061, "25h01m")]
)
def test_durations_have_two_units(seconds: float, text: str):
    assert table.duration(seconds) == text
