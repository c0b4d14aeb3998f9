"""The commands about a job that exists, on this machine: where they look, and what they do beside a `sftjob run`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import tiny
from local.local_bench import ROOT, Bench, finish, until
from sftjob_operator.cli import app, completion
from sftjob_operator.cli.errors import CliError
from sftjob_operator.cli.place import STATE, Where

ENVIRONMENT = {**os.environ, "PYTHONPATH": f"{ROOT}/operator:{ROOT}/trainer"}


def invoke(*words: str) -> Any:
    return CliRunner().invoke(app.app, list(words))


def start(*words: str) -> subprocess.Popen[str]:
    """A command in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "sftjob_operator.cli.app", *words],
        text=True,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def completed(command: str, incomplete: str, *options: str) -> list[str]:
    """What the shell offers for the name of the job."""
    words = ["sftjob", command, *options, incomplete]
    asked = {
        "_SFTJOB_COMPLETE": "complete_bash",
        "COMP_WORDS": " ".join(words),
        "COMP_CWORD": str(len(words) - 1),
    }
    done = CliRunner().invoke(app.app, [], prog_name="sftjob", env=asked)
    return done.output.split()


def test_kubectl_is_told_what_may_follow(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "argv", ["/bin/kubectl_complete-sftjob", "ch"])
    completion.main()
    *found, directive = capsys.readouterr().out.splitlines()
    assert [line.partition("\t")[0] for line in found] == ["checkpoints", "chat"]
    assert directive == ":4"


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


# ------------------------------------------------------------------------- where


@pytest.mark.parametrize(
    ("program", "where", "state_is_here", "is_local"),
    [
        ("sftjob", Where(), True, True),
        ("sftjob", Where(), False, False),
        ("kubectl-sftjob", Where(), True, False),
        ("kubectl-sftjob", Where(local=True), False, True),
        ("kubectl-sftjob", Where(state=Path("x")), False, True),
        ("sftjob", Where(context="prod"), True, False),
        ("sftjob", Where(kubeconfig="k"), True, False),
        ("sftjob", Where(namespace="team"), True, True),
    ],
)
def test_the_place_is_what_was_said_else_what_is_there(
    program: str,
    where: Where,
    state_is_here: bool,
    is_local: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", [f"/usr/bin/{program}"])
    if state_is_here:
        STATE.mkdir(parents=True)
    assert where.is_local is is_local


def test_a_cluster_and_this_machine_at_once_are_refused():
    with pytest.raises(CliError, match="give one kind"):
        assert Where(local=True, context="prod").is_local


@pytest.mark.parametrize(
    ("kubeconfig", "words"),
    [
        (
            None,
            r"no jobs to be found: \.sftjob/state is not in this directory .*no cluster: KUBECONFIG is not set",
        ),
        ("missing", r"no jobs to be found: .*kubeconfig .*missing: no such file"),
        ("nonsense: [", "kubeconfig .*"),
    ],
)
def test_without_jobs_and_without_a_cluster_it_says_what_it_looked_for(
    kubeconfig: str | None, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("KUBECONFIG", raising=False)
    if kubeconfig is not None:
        monkeypatch.setenv("KUBECONFIG", str(tmp_path / "missing"))
        if kubeconfig != "missing":
            (tmp_path / "missing").write_text(kubeconfig)
    with pytest.raises(CliError, match=words):
        raise invoke("get").exception


# ------------------------------------------------------------------------- beside a run


@pytest.mark.processes
def test_a_job_is_watched_suspended_and_resumed_from_another_terminal(bench: Bench):
    bench.env = {"FAKE_STEPS": "40", "FAKE_HOLD": "3"}
    state = ("--state", str(bench.state))
    run = bench.start()
    until(lambda: bench.step() == 3, "step 3")
    watching = start("watch", "bot", *state)
    following = start("logs", "bot", "-f", *state)
    assert json.loads(invoke("get", "bot", "-o", "json", *state).output)["metadata"]["name"] == "bot"
    assert "bot is running: TrainingSteps" in invoke("explain", "bot", *state).output
    assert "another job" not in invoke("resume", "bot", *state).output, "it is being run already"
    done = invoke("suspend", "bot", *state)
    assert done.exit_code == 0, done.output + str(done.exception)
    assert done.output.endswith(
        f"bot is suspended; sftjob resume bot --state {bench.state} goes on with it\n"
    )
    assert finish(run)[0] == 130
    code, said = finish(watching)
    assert (code, "and no `sftjob run` carries it on" in said) == (3, True), said
    assert finish(following)[0] == 0
    assert "bot is suspended already" in invoke("suspend", "bot", *state).output
    told = invoke("explain", "bot", *state).output
    assert "bot is not running: Suspended" in told
    assert f"sftjob resume bot --state {bench.state}" in told.replace("\n", " ")
    (bench.job_folder / "go").touch()
    resumed = start("resume", "bot", *state)
    code, said = finish(resumed)
    assert (code, "bot is complete: 40 steps" in said) == (0, True), said
    watched = invoke("watch", "bot", "-o", "json", *state)
    assert (watched.exit_code, json.loads(watched.output)["status"]["phase"]) == (0, "Succeeded")
    assert "nothing left to stop" in str(invoke("suspend", "bot", *state).exception)
    assert json.loads(invoke("checkpoints", "bot", "-o", "json", *state).output) == []


@pytest.mark.processes
def test_logs_are_those_of_an_attempt_or_of_the_one_before(bench: Bench):
    bench.env = {"FAKE_FAIL": "70", "FAKE_STEPS": "2"}
    assert bench.run()[0] == 0
    state = ("--state", str(bench.state))
    assert invoke("logs", "bot", *state).output == ""
    before = invoke("logs", "bot", "--previous", *state).output
    assert (
        before
        == invoke("logs", "bot", "--attempt", "1", *state).output
        == "[bot-1-1] the last words of rank 1\n"
    )
    assert invoke("logs", "bot", "--attempt", "1", "--rank", "0", *state).output == ""
    for_programs = invoke("logs", "bot", "--attempt", "1", "-o", "json", *state).output
    assert json.loads(for_programs) == {"pod": "bot-1-1", "rank": None, "line": "the last words of rank 1"}
    assert completed("watch", "b", *state) == ["bot"]
    assert completed("watch", "x", *state) == completed("watch", "b", "--state", "/nowhere") == []
    assert (
        "[prepare] preparing without a token" in invoke("logs", "bot", "--attempt", "0", "-f", *state).output
    )
    assert "Attempt 1 ended with Crash" in invoke("explain", "bot", *state).output


@pytest.mark.processes
def test_explain_of_a_job_that_failed_names_the_cause_and_the_next_command(bench: Bench):
    bench.workspace.mkdir(exist_ok=True)
    (bench.workspace / "broken").write_text("7")
    assert bench.run()[0] == 1
    told = json.loads(invoke("explain", "bot", "-o", "json", "--state", str(bench.state)).output)
    assert told["headline"] == "bot has failed: InvalidRow"
    assert "a.jsonl line 7 is broken" in told["paragraphs"][0]
    assert "onInvalidRow: Skip" in told["paragraphs"][0]
    assert told["commands"] == ["sftjob data inspect FILE --model FOLDER"]


@pytest.mark.processes
def test_what_only_the_volume_has_is_read_by_the_trainers_own_program(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    bench.env = {"FAKE_STEPS": "1"}
    assert bench.run()[0] == 0
    monkeypatch.chdir(tmp_path)
    state = ("--state", str(bench.state))
    words = str(invoke("report", "bot", *state).exception)
    assert "bot has no report yet: no training has begun in jobs/bot of the volume" in words
    (bench.job_folder / "report").mkdir()
    whole = "<html>" + "x" * 200_000
    (bench.job_folder / "report" / "report.html").write_text(whole)
    assert invoke("report", "bot", *state).output == "bot-report.html (200,006 bytes)\n"
    assert (tmp_path / "bot-report.html").read_text() == whole
    log = bench.job_folder / "logs" / "1" / "rank-1.log"
    log.parent.mkdir(parents=True)
    log.write_text("a\nb\n")
    for pod in (bench.state / "objects" / "pod").glob("*/*.json"):
        pod.unlink()  # as the Job controller removes them
    assert invoke("logs", "bot", "--tail", "1", *state).output == "[bot-1] [rank 1] b\n"
    assert "has no pods of attempt 7" in str(invoke("logs", "bot", "--attempt", "7", *state).exception)
    assert invoke("checkpoints", "bot", "--verify", *state).exit_code == 0
    assert "holds no config.json" in str(invoke("chat", "bot", "-q", "hi", *state).exception)
    old = bench.workspace / ".sftjob" / "cache" / "data" / "c0ffee"
    old.mkdir(parents=True)
    os.utime(old, (0, 0))
    shown = invoke("clean", "bot", *state).output
    assert ".sftjob/cache/data/c0ffee" in shown
    assert "0.0 GiB would be free: the same with --yes removes it" in shown
    assert old.is_dir()
    assert "are free again" in invoke("clean", "bot", "--yes", "--limit", "1Gi", *state).output
    assert not old.exists()
    assert invoke("clean", "bot", *state).output == "nothing that has been unused for 30 days\n"
    assert "is not a quantity" in str(invoke("clean", "bot", "--limit", "much", *state).exception)


@pytest.mark.processes
def test_the_exported_model_and_its_base_answer_word_by_word(bench: Bench):
    bench.env = {"FAKE_STEPS": "1"}
    assert bench.run()[0] == 0
    tiny.model(bench.workspace / "models" / "base", seed=1)
    tiny.model(bench.job_folder / "export", seed=2)
    words = ("--base", "--max-new-tokens", "3", "--state", str(bench.state))
    done = invoke("chat", "bot", "-q", "hi", "-q", "who?", "-o", "json", *words)
    assert done.exit_code == 0, done.output + str(done.exception)
    first, second = map(json.loads, done.output.splitlines())
    assert [first["question"], second["question"]] == ["hi", "who?"]
    assert set(first) == {"question", "base", "tuned"}
    assert first["base"] != first["tuned"], "two models"
