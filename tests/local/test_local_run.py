"""`sftjob run` with real processes: the operator's own loop, from the YAML to the end, through every interruption."""

from __future__ import annotations

import io
import json
import os
import signal
from pathlib import Path

import pytest
from rich.console import Console

from local.local_bench import Bench, finish, lives, until
from sftjob_operator.cli.delete import delete
from sftjob_operator.cli.errors import CliError
from sftjob_operator.cli.run import Options, run
from sftjob_operator.cluster.base import Key, ref_of
from sftjob_operator.cluster.local import LocalCluster
from sftjob_operator.cluster.local.lock import exclusive
from sftjob_operator.cluster.local.volumes import claim_directory

pytestmark = pytest.mark.processes


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_a_job_runs_to_its_end_and_says_where_everything_lies(bench: Bench):
    code, out = bench.run()
    assert code == 0, out
    assert "bot is complete: 5 steps, loss 0.5" in out
    assert f"model to load {bench.job_folder / 'export'}" in out
    status = bench.job()["status"]
    assert (status["phase"], status["progress"]["display"]) == ("Succeeded", "5/5")
    seen = json.loads((bench.job_folder / "seen-1-1").read_text())
    assert seen["hosts"] == [True, True]
    assert seen["cpus"] == str(max(1, len(os.sched_getaffinity(0)) // 2))
    assert bench.run()[1].startswith("bot is complete: 5 steps")


def test_a_claim_of_the_jobs_own_is_the_workspace_directory_and_outlives_the_job(bench: Bench):
    template = {"spec": {"resources": {"requests": {"storage": "1Gi"}}}}
    own = {"claimTemplate": template, "retentionPolicy": {"whenDeleted": "Delete"}}
    bench.spec = {"workspace": own}
    code, out = bench.run()
    assert code == 0, out
    delete(bench.state, Key("default", "bot"), Console(file=io.StringIO()))
    assert (bench.job_folder / "export").is_dir()
    assert LocalCluster(bench.state).sftjob(Key("default", "bot")) is None


async def test_a_claim_that_names_no_directory_gets_one_which_goes_with_it(tmp_path: Path):
    claim = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "w", "namespace": "n"},
        "spec": {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1Gi"}}},
    }
    cluster = LocalCluster(tmp_path)
    await cluster.create(claim)
    cluster.tick()
    found = await cluster.get(ref_of(claim))
    assert found is not None
    assert found["status"]["phase"] == "Bound"
    directory = claim_directory(found)
    assert directory is not None
    (directory / "file").touch()
    LocalCluster(tmp_path).tick()
    assert (directory / "file").exists()
    await cluster.delete(ref_of(claim))
    cluster.tick()
    assert not directory.exists()


def test_after_the_end_another_spec_is_refused_with_the_words_of_the_api_server(bench: Bench):
    bench.run()
    bench.spec = {"training": {"globalBatchSize": 4}}
    with pytest.raises(CliError, match=r"bot.yaml: .*spec.training cannot change once the job has started"):
        bench.run()


def test_after_the_end_the_refusal_says_how_to_start_again(bench: Bench):
    bench.run()
    bench.spec = {"training": {"globalBatchSize": 4}}
    with pytest.raises(
        CliError, match=r"to start again: sftjob delete bot --state .*: the same model, data and seed go on"
    ):
        bench.run()
    assert bench.job()["spec"]["training"]["globalBatchSize"] == 2


def test_another_workspace_is_refused_while_the_claim_is_there(bench: Bench):
    assert bench.run()[0] == 0
    first = bench.workspace
    other = Bench(bench.folder / "other")
    options = Options(bench.file(), other.workspace, bench.state, None, ())
    with pytest.raises(
        CliError, match=rf"the claim w of {bench.state} is {first} already: give --workspace {first}"
    ):
        run(options, Console(file=io.StringIO()))


def test_a_job_that_failed_before_it_started_stays_when_the_new_file_is_wrong(bench: Bench):
    (bench.workspace / "broken").write_text("17")
    assert bench.run()[0] == 1
    bench.spec = {"training": {"epochs": 1, "maxSteps": 1}}
    with pytest.raises(CliError, match="set at most one of"):
        bench.run()
    assert bench.job()["status"]["phase"] == "Failed"


def test_bad_data_fails_the_job_and_repaired_data_lets_it_run(bench: Bench):
    (bench.workspace / "broken").write_text("17")
    code, out = bench.run()
    assert code == 1
    assert "bot has failed: InvalidRow: a.jsonl line 17 is broken" in out
    assert "  preparing without a token" in out
    (bench.workspace / "broken").unlink()
    assert bench.run()[0] == 0


def test_a_failed_attempt_is_followed_by_the_next(bench: Bench):
    bench.env = {"FAKE_FAIL": "70"}
    code, out = bench.run()
    assert code == 0, out
    attempts = bench.job()["status"]["attempts"]
    assert [(one["number"], one["state"]) for one in attempts] == [(1, "Failed"), (2, "Succeeded")]
    assert attempts[0]["message"] == "rank 1: it broke"


def test_after_the_last_attempt_the_reason_and_the_log_are_shown(bench: Bench):
    bench.env, bench.spec = {"FAKE_FAIL": "70"}, {"failurePolicy": {"maxRestarts": 0}}
    code, out = bench.run()
    assert code == 1
    assert "bot has failed: Crash: " in out
    assert "rank 1: it broke" in out
    assert "  the last words of rank 1" in out
    assert "to start again: sftjob delete bot" in out


def test_a_missing_secret_is_asked_for_and_reaches_prepare_when_given(bench: Bench):
    bench.spec = {"model": {"path": "models/base", "secretRef": {"name": "hub"}}}
    with pytest.raises(CliError, match=r"SecretMissing: .*hub.* \(give it with --secret NAME=FILE\)"):
        bench.run()
    env = bench.folder / "hub.env"
    env.write_text("# of the hub\nTOKEN='s3cret'\n")
    assert bench.run(secrets=(f"hub={env}",))[0] == 0
    (log,) = bench.state.glob("pods/default/bot-prepare-*/container.log")
    assert log.read_text() == "preparing s3cret\n"
    assert (bench.state / "objects" / "secret" / "default" / "hub.json").stat().st_mode & 0o77 == 0


@pytest.mark.parametrize(
    ("volume", "words"),
    [
        ({"configMap": {"name": "nowhere"}}, 'configmap "nowhere" not found'),
        ({"persistentVolumeClaim": {"claimName": "nowhere"}}, 'persistentvolumeclaim "nowhere" not found'),
    ],
    ids=["config-map", "claim"],
)
def test_a_volume_of_the_pod_template_that_is_not_there_ends_the_run(bench: Bench, volume: dict, words: str):
    spec = {
        "volumes": [{"name": "x", **volume}],
        "containers": [{"name": "trainer", "volumeMounts": [{"name": "x", "mountPath": "/x"}]}],
    }
    bench.spec = {"workers": {**bench.manifest()["spec"]["workers"], "podTemplate": {"spec": spec}}}
    with pytest.raises(CliError, match=rf"bot.yaml: VolumeMissing: .*{words}") as told:
        bench.run()
    assert told.value.code == 2
    events = [json.loads(file.read_text()) for file in bench.state.glob("objects/event/default/*")]
    about = [event["message"] for event in events if event["involvedObject"]["kind"] == "Pod"]
    assert len(about) == 2
    assert all(words in message for message in about)


def test_two_runs_of_one_state_are_refused(bench: Bench):
    with (
        exclusive(bench.state),
        pytest.raises(CliError, match=rf"process {os.getpid()} is already running jobs"),
    ):
        bench.run()


def test_ctrl_c_saves_and_the_same_command_goes_on(bench: Bench):
    bench.env = {"FAKE_STEPS": "9", "FAKE_HOLD": "4"}
    process = bench.start()
    until(lambda: bench.step() == 4, "step 4")
    code, out = finish(process, signal.SIGINT)
    assert (code, out.splitlines()[-1]) == (
        130,
        "bot is suspended at step 4/9; the same command goes on with it",
    )
    assert not any(lives(pid) for pid in bench.pids(1))
    (bench.job_folder / "go").touch()
    assert bench.run()[0] == 0
    assert json.loads((bench.job_folder / "seen-2-0").read_text())["start"] == 4
    assert bench.job()["status"]["restarts"] == 0


def test_what_was_stopped_goes_on_with_the_number_of_nodes_that_the_file_has_now(bench: Bench):
    bench.env = {"FAKE_STEPS": "9", "FAKE_HOLD": "4"}
    process = bench.start()
    until(lambda: bench.step() == 4, "step 4")
    assert finish(process, signal.SIGINT)[0] == 130
    (bench.job_folder / "go").touch()
    bench.spec = {"workers": {**bench.manifest()["spec"]["workers"], "nodes": 1}}
    assert bench.run()[0] == 0
    assert json.loads((bench.job_folder / "seen-2-0").read_text())["start"] == 4
    assert not (bench.job_folder / "seen-2-1").exists()
    status = bench.job()["status"]
    assert (status["nodes"], status["plan"]["worldSize"], status["restarts"]) == (1, 1, 0)


def test_a_second_ctrl_c_ends_ranks_that_do_not_stop(bench: Bench):
    fake = bench.package / "__main__.py"
    fake.write_text(
        fake.read_text().replace(
            "signal.signal(signal.SIGTERM, stop)", "signal.signal(signal.SIGTERM, signal.SIG_IGN)"
        )
    )
    bench.env = {"FAKE_STEPS": "9", "FAKE_HOLD": "4"}
    process = bench.start()
    until(lambda: bench.step() == 4, "step 4")
    process.send_signal(signal.SIGINT)
    until(lambda: bench.job()["spec"]["suspend"], "the first is taken")
    assert finish(process, signal.SIGINT)[0] == 130
    assert not any(lives(pid) for pid in bench.pids(1))
    (bench.job_folder / "go").touch()
    assert bench.run()[0] == 0


def test_after_kill_9_the_next_run_goes_on_with_the_living_ranks(bench: Bench):
    bench.env = {"FAKE_STEPS": "9", "FAKE_HOLD": "4"}
    process = bench.start()
    until(lambda: bench.step() == 4, "step 4")
    pids = bench.pids(1)
    process.kill()
    process.communicate()
    assert all(lives(pid) for pid in pids)
    (bench.job_folder / "go").touch()
    code, out = bench.run()
    assert code == 0, out
    (attempt,) = bench.job()["status"]["attempts"]
    assert (attempt["number"], attempt["state"]) == (1, "Succeeded")


def test_the_run_of_another_job_first_lets_the_ranks_of_this_one_save_and_stop(bench: Bench):
    bench.env = {"FAKE_STEPS": "9", "FAKE_HOLD": "4"}
    process = bench.start()
    until(lambda: bench.step() == 4, "step 4")
    pids = bench.pids(1)
    process.kill()
    process.communicate()
    code, out = Bench(bench.folder, "other").run()
    assert code == 0, out
    assert "the ranks of bot run on from earlier; first they save a checkpoint and stop" in out
    assert not any(lives(pid) for pid in pids)
    assert bench.job()["status"]["phase"] == "Suspended"
    (bench.job_folder / "go").touch()
    assert bench.run()[0] == 0
    assert json.loads((bench.job_folder / "seen-2-0").read_text())["start"] == 4
    assert bench.job()["status"]["restarts"] == 0


def test_ranks_that_ended_while_nobody_looked_are_counted(bench: Bench):
    bench.env = {"FAKE_STEPS": "9", "FAKE_HOLD": "4"}
    process = bench.start()
    until(lambda: bench.step() == 4, "step 4")
    pids = bench.pids(1)
    process.kill()
    process.communicate()
    (bench.job_folder / "go").touch()
    until(lambda: not any(lives(pid) for pid in pids), "the ranks end")
    assert bench.run()[0] == 0
    assert len(bench.job()["status"]["attempts"]) == 1


def test_ranks_that_went_with_the_machine_are_a_disruption_and_not_charged(bench: Bench):
    bench.env, bench.spec = {"FAKE_STEPS": "9", "FAKE_HOLD": "4"}, {"failurePolicy": {"maxRestarts": 0}}
    process = bench.start()
    until(lambda: bench.step() == 4, "step 4")
    pids = bench.pids(1)
    process.kill()
    process.communicate()
    for file in bench.state.glob("pods/default/bot-1-*/process.json"):  # as after a power cut
        os.kill(json.loads(file.read_text())["supervisor"]["pid"], signal.SIGKILL)
    until(lambda: not any(lives(pid) for pid in pids), "the ranks go with their supervisors")
    (bench.job_folder / "go").touch()
    code, out = bench.run()
    assert code == 0, out
    first, second = bench.job()["status"]["attempts"]
    assert (first["reason"], first["charged"], second["state"]) == ("Disrupted", False, "Succeeded")
    assert "was this machine restarted?" in first["message"]


def test_a_killed_rank_is_a_failed_attempt(bench: Bench):
    bench.env = {"FAKE_STEPS": "9", "FAKE_HOLD": "4"}
    process = bench.start()
    until(lambda: bench.step() == 4, "step 4")
    os.kill(bench.pids(1)[1], signal.SIGKILL)
    (bench.job_folder / "go").touch()
    code, out = finish(process)
    assert code == 0, out
    first, second = bench.job()["status"]["attempts"]
    assert (first["reason"], first["exitCode"], second["state"]) == ("HostOutOfMemory", 137, "Succeeded")
