"""Real launchers with small ranks: how a pod ends, whatever happens to its ranks or to itself."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from launching import Pod, train_config, watched
from sft_trainer.config import FailureClass

pytestmark = [pytest.mark.processes, pytest.mark.timeout(180)]

FINISH = "finish()"


@pytest.fixture
def pod(tmp_path: Path) -> Pod:
    return Pod(tmp_path)


@pytest.fixture
def pair(tmp_path: Path) -> Pod:
    return Pod(tmp_path, processes=2)


def test_a_pod_succeeds_with_the_result_of_rank_0(pair: Pod) -> None:
    outcome = pair.ends("finish(lastStep=40 + rank)")
    assert (outcome.outcome, outcome.exit_code, outcome.last_step) == ("Succeeded", 0, 40)


def test_exit_code_0_without_a_final_marker_is_a_failure(pair: Pod) -> None:
    outcome = pair.ends("if rank == 0: finish()")
    assert (outcome.failure_class, outcome.rank) == (FailureClass.CRASH, 1)
    assert "before the training was finished" in outcome.message


def test_markers_of_an_earlier_run_do_not_count(pod: Pod) -> None:
    assert pod.ends(FINISH).exit_code == 0
    assert pod.ends("pass").failure_class is FailureClass.CRASH


def test_a_crash_is_reported_with_its_exception(pair: Pod) -> None:
    outcome = pair.ends("if rank == 1: raise ValueError('boom')\nforever()")
    assert (outcome.failure_class, outcome.rank, outcome.exit_code) == (FailureClass.CRASH, 1, 70)
    assert outcome.message.startswith("rank 1 ended with exit code 1: ValueError: boom")


def test_a_rank_that_is_killed_takes_the_others_down(pair: Pod) -> None:
    with pair.started("print('pid', os.getpid())\nif rank == 1: stop_with(73)\nforever()"):
        found = [pair.says(r"^\[rank (\d)\] pid (\d+)") for _ in range(2)]
        os.kill(next(int(match[2]) for match in found if match[1] == "0"), signal.SIGSEGV)
        outcome = pair.outcome()
    assert (outcome.failure_class, outcome.rank) == (FailureClass.CRASH, 0)
    assert "killed by SIGSEGV" in outcome.message


def test_a_rank_that_ignores_sigterm_is_killed_after_the_grace_period(pair: Pod) -> None:
    source = (
        "if rank == 1:\n"
        "    signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "    open(f'{run}/deaf', 'w').close()\n"
        "    forever()\n"
        "while not os.path.exists(f'{run}/deaf'): time.sleep(0.01)\n"
        "finish('Failed', 'InvalidRow', failureClass='UserError', message='row 7')\n"
        "sys.exit(71)"
    )
    outcome = pair.ends(source, settings={"grace_seconds": 0.2})
    assert (outcome.failure_class, outcome.reason, outcome.message) == ("UserError", "InvalidRow", "row 7")
    assert any("rank 1 ended with status -9" in line for line in pair.output)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_request_to_stop_lets_the_ranks_save_and_is_an_interruption(
    pair: Pod, number: signal.Signals
) -> None:
    source = (
        "def save(*_):\n"
        "    finish('Failed', 'Interrupted', failureClass='Interrupted', lastVerifiedStep=7)\n"
        "    os._exit(74)\n"
        "signal.signal(signal.SIGTERM, save)\n"
        "print('ready')\n"
        "forever()"
    )
    with pair.started(source):
        for _ in range(2):
            pair.says("ready")
        pair.signal(number)
        outcome = pair.outcome()
    assert (outcome.failure_class, outcome.exit_code) == (FailureClass.INTERRUPTED, 74)
    assert outcome.last_verified_step == 7


def test_ranks_that_agreed_to_stop_wait_for_each_other(pair: Pod) -> None:
    source = (
        "if rank == 1: sys.exit(74)\n"
        "signal.signal(signal.SIGTERM, lambda *_: os._exit(1))\n"
        "while not os.path.exists(f'{run}/go'): time.sleep(0.01)\n"
        "sys.exit(74)"
    )
    with pair.started(source, settings={"grace_seconds": 0.0}):
        pair.says("rank 1 ended with status 74")
        (pair.run / "go").touch()
        outcome = pair.outcome()
    assert (outcome.failure_class, outcome.exit_code) == (FailureClass.INTERRUPTED, 74)
    assert any("rank 0 ended with status 74" in line for line in pair.output)


def test_a_rank_that_never_ends_an_agreed_stop_is_killed_after_the_deadline(pair: Pod) -> None:
    outcome = pair.ends("if rank == 1: sys.exit(74)\nforever()", settings={"stop_seconds": 0.2})
    assert (outcome.failure_class, outcome.exit_code) == (FailureClass.INTERRUPTED, 74)
    assert any("rank 0 ended with status -9" in line for line in pair.output)


def test_a_second_request_to_stop_kills(pod: Pod) -> None:
    with pod.started("signal.signal(signal.SIGTERM, lambda *_: print('saving'))\nprint('ready')\nforever()"):
        pod.says("ready")
        pod.signal(signal.SIGTERM)
        pod.says("saving")
        pod.signal(signal.SIGTERM)
        outcome = pod.outcome()
    assert (outcome.failure_class, outcome.exit_code) == (FailureClass.INTERRUPTED, 74)
    assert "before it had saved" in outcome.message


def test_saving_has_a_deadline(pod: Pod) -> None:
    source = "signal.signal(signal.SIGTERM, lambda *_: print('saving'))\nprint('ready')\nforever()"
    with pod.started(source, settings={"stop_seconds": 0.2}):
        pod.says("ready")
        pod.signal(signal.SIGTERM)
        assert pod.outcome().failure_class is FailureClass.INTERRUPTED


def test_a_stop_while_waiting_for_rank_0s_name_is_an_interruption(pod: Pod) -> None:
    (pod.config / "hostfile").write_text("nowhere.invalid slots=1\n")
    del pod.environment["SFTJOB_POD_IP"]
    with pod.started(FINISH):
        pod.says("waiting for the name of rank 0's pod, nowhere.invalid")
        pod.signal(signal.SIGTERM)
        assert pod.outcome().failure_class is FailureClass.INTERRUPTED


def test_a_pod_that_lost_its_peers_lets_the_cause_fail_first(pod: Pod) -> None:
    with pod.started("sys.exit(73)", settings={"peer_lost_delay_seconds": 3600}):
        pod.says("leaving in 3600 s")
        pod.signal(signal.SIGTERM)  # the Job controller has seen the cause: no reason to stay
        outcome = pod.outcome()
    assert (outcome.failure_class, outcome.exit_code) == (FailureClass.PEER_LOST, 73)


def test_a_pod_with_the_cause_leaves_at_once(pod: Pod) -> None:
    assert pod.ends("sys.exit(70)", settings={"peer_lost_delay_seconds": 3600}).exit_code == 70


def test_no_rank_outlives_a_killed_launcher(pair: Pod) -> None:
    with pair.started("print('pid', os.getpid())\nforever()"):
        ranks = [int(pair.says(r"pid (\d+)")[1]) for _ in range(2)]
        with watched(ranks[0]) as first, watched(ranks[1]) as second:
            pair.signal(signal.SIGKILL)
            assert first.poll(30_000)
            assert second.poll(30_000)


def test_what_a_rank_left_behind_is_killed(pod: Pod) -> None:
    source = (
        "child = subprocess.Popen([sys.executable, '-S', '-c', 'import signal; signal.pause()'])\n"
        "print('child', child.pid)\n"
        "while not os.path.exists(f'{run}/go'): time.sleep(0.01)\n"
        "finish()\n"
        "os._exit(0)"
    )
    with pod.started(source), watched(int(pod.says(r"child (\d+)")[1])) as child:
        (pod.run / "go").touch()
        assert pod.outcome().exit_code == 0
        assert child.poll(30_000)


def test_orphans_are_reaped_while_the_ranks_live(pod: Pod) -> None:
    source = (
        "reader, writer = os.pipe()\n"
        "if os.fork() == 0:\n"
        "    orphan = os.fork()\n"
        "    if orphan: os.write(writer, str(orphan).encode())\n"
        "    os._exit(0)\n"
        "os.wait()\n"
        "orphan = os.read(reader, 20).decode()\n"
        "while os.path.exists(f'/proc/{orphan}'): time.sleep(0.01)  # a zombie stays until it is reaped\n"
        "finish()"
    )
    assert pod.ends(source).exit_code == 0


def test_a_command_that_is_not_there_is_a_crash(pod: Pod) -> None:
    outcome = pod.ends(FINISH, command=["/nowhere/python"])
    assert outcome.failure_class is FailureClass.CRASH
    assert "/nowhere/python: No such file or directory" in outcome.message


def test_rank_logs_are_prefixed_on_stdout_and_bounded_on_the_volume(pair: Pod) -> None:
    pair.ends(
        "print('a' * 50)\nprint('x' * 3000, file=sys.stderr)\nfinish()", settings={"log_limit_bytes": 1000}
    )
    assert f"[rank 1] {'a' * 50}" in pair.output
    assert f"[rank 0] {'x' * 3000}" in pair.output
    log = (pair.workspace / "jobs/bot/logs/1/rank-1.log").read_text()
    assert len(log) < 1100
    assert "cut here" in log


def test_the_log_of_an_earlier_run_of_the_attempt_is_kept(pod: Pod) -> None:
    pod.ends("print('first')\nfinish()")
    pod.ends("print('second')\nfinish()")
    logs = pod.workspace / "jobs/bot/logs/1"
    assert (logs / "rank-0.log").read_text() == "second\n"
    assert (logs / "rank-0.previous.log").read_text() == "first\n"


def test_a_log_that_cannot_be_written_costs_one_warning(pod: Pod) -> None:
    source = "for _ in range(100): print('x' * 100)\nfinish()"
    outcome = pod.ends(source, file_size_limit=2000)
    assert outcome.exit_code == 0
    assert sum("training goes on" in line for line in pod.output) == 1
    assert sum("[rank 0] xxx" in line for line in pod.output) == 100


def test_a_volume_without_a_place_for_logs_costs_one_warning(pod: Pod) -> None:
    (pod.workspace / "jobs").write_text("a file, not a folder")
    assert pod.ends(FINISH).exit_code == 0
    assert sum("training goes on" in line for line in pod.output) == 1


@pytest.mark.parametrize(
    ("name", "content", "reason", "words"),
    [
        ("hostfile", "bot-1-0.bot\n", "InvalidHostfile", "hostfile line 1"),
        ("hostfile", "a slots=1\nb slots=1\n", "InvalidHostfile", "names 2 nodes, topology.nodes is 1"),
        ("train.json", json.dumps(train_config(surprise=1)), "InvalidTrainConfig", "surprise: Extra inputs"),
    ],
)
def test_wrong_input_is_a_user_error(pod: Pod, name: str, content: str, reason: str, words: str) -> None:
    (pod.config / name).write_text(content)
    outcome = pod.ends(FINISH)
    assert (outcome.failure_class, outcome.exit_code, outcome.reason) == ("UserError", 71, reason)
    assert words in outcome.message
    assert not any("Traceback" in line for line in pod.output)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.2", 0))
        return int(probe.getsockname()[1])


def test_two_nodes_share_one_machine_and_one_port_number(tmp_path: Path) -> None:
    pods = [Pod(tmp_path, index, nodes=2, processes=2) for index in range(2)]
    source = (
        "names = ['RANK', 'LOCAL_RANK', 'WORLD_SIZE', 'CROSS_RANK', 'MASTER_ADDR', 'MASTER_PORT']\n"
        "print('gang', *(os.environ[name] for name in names))\n"
        "while not os.path.exists(f'{run}/go'): time.sleep(0.01)\n"
        "finish()"
    )
    port = free_port()
    with pods[0].started(source, port=port), pods[1].started(source, port=port):
        seen = sorted(pod.says("gang (.*)")[1] for pod in pods for _ in range(2))
        for pod in pods:
            assert pod.get("/healthz", port)[0] == 200
            assert f'node="{pod.environment["SFTJOB_NODE_NAME"]}"' in pod.get("/metrics", port)[1]
        for pod in pods:
            (pod.run / "go").touch()
        assert [pod.outcome().exit_code for pod in pods] == [0, 0]
    assert seen == [f"{rank} {rank % 2} 4 {rank // 2} 127.0.0.2 29500" for rank in range(4)]


def test_rank_0_meets_the_others_at_its_pods_own_address_whatever_its_name_says(pod: Pod) -> None:
    (pod.config / "hostfile").write_text("nowhere.invalid slots=1\n")
    outcome = pod.ends("print('gang', os.environ['MASTER_ADDR'])\nfinish()")
    assert outcome.exit_code == 0
    assert "[rank 0] gang 127.0.0.2" in pod.output


def test_ranks_of_other_nodes_get_the_name_that_dns_knows(tmp_path: Path) -> None:
    pod = Pod(tmp_path, index=1, nodes=2)
    (pod.config / "hostfile").write_text("localhost slots=1\nother slots=1\n")
    assert pod.ends("print('gang', os.environ['MASTER_ADDR'])\nfinish()").exit_code == 0
    assert "[rank 1] gang localhost" in pod.output


def test_a_port_that_is_taken_is_a_warning(pod: Pod) -> None:
    with socket.create_server((pod.address, 0)) as taken:
        assert pod.ends(FINISH, port=taken.getsockname()[1]).exit_code == 0
    assert any("no /metrics and /progress" in line for line in pod.output)


def test_pages_are_answered_while_a_rank_is_stopped(pod: Pod) -> None:
    source = (
        "from sft_trainer.metrics import Metrics\n"
        "metrics = Metrics(sftjob='bot', attempt=1, rank=rank)\n"
        "metrics.evaluation(loss=1.5, seconds=2.0)\n"
        "stop_with(74)\n"
        "print('ready', os.getpid())\n"
        "forever()"
    )
    with pod.started(source):
        port = int(pod.says(r"serving .* port (\d+)")[1])
        rank = int(pod.says(r"ready (\d+)")[1])
        assert pod.get("/progress", port)[0] == 404
        os.kill(rank, signal.SIGSTOP)
        (pod.run / "progress.json").write_text('{"step": 3}')
        assert pod.get("/progress", port) == (200, '{"step": 3}')
        assert pod.get("/healthz", port)[0] == 200
        assert pod.get("/nothing", port)[0] == 404
        metrics = pod.get("/metrics", port)[1]
        os.kill(rank, signal.SIGCONT)
        pod.signal(signal.SIGTERM)
        assert pod.outcome().exit_code == 74
    labels = 'attempt="1",node="node-0",rank="0",sftjob="bot"'
    assert f"sft_trainer_eval_loss{{{labels}}} 1.5" in metrics
    assert 'sft_trainer_rank_up{attempt="1",node="node-0",rank="0",sftjob="bot"} 1.0' in metrics
    assert "pid=" not in metrics


def test_metrics_and_progress_of_an_earlier_run_are_forgotten(pod: Pod) -> None:
    source = (
        "from sft_trainer.metrics import Metrics\n"
        "Metrics(sftjob='bot', attempt=1, rank=rank).evaluation(loss=1.5, seconds=2.0)\n"
        "finish()"
    )
    assert pod.ends(source).exit_code == 0
    assert list((pod.run / "metrics").iterdir())
    (pod.run / "progress.json").write_text("{}")
    with pod.started("stop_with(74)\nprint('ready')\nforever()"):
        port = int(pod.says(r"serving .* port (\d+)")[1])
        pod.says("ready")
        assert "eval_loss" not in pod.get("/metrics", port)[1]
        assert pod.get("/progress", port)[0] == 404
        pod.signal(signal.SIGTERM)
        assert pod.outcome().exit_code == 74


def test_the_launcher_imports_no_heavy_library() -> None:
    script = (
        "import sys, sft_trainer.launch\n"
        "heavy = {'torch', 'deepspeed', 'transformers', 'numpy', 'datasets'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    environment = {**os.environ, "PYTHONPATH": "trainer"}
    root = Path(__file__).resolve().parents[2]
    subprocess.run([sys.executable, "-c", script], check=True, cwd=root, env=environment)


_TRAINED = "finish(train={'steps': 1, 'exportDirectory': 'jobs/bot/export', 'exportBytes': 1})"


def test_a_success_gets_its_report_behind_the_outcome(pod: Pod) -> None:
    assert pod.ends(_TRAINED).exit_code == 0
    folder = pod.workspace / "jobs" / "bot" / "report"
    said = json.loads((folder / "events.jsonl").read_text().splitlines()[-1])
    assert (said["kind"], said["outcome"]["reason"]) == ("ended", "Succeeded")
    assert "Training report" in (folder / "report.html").read_text()


def test_a_failure_is_written_down_and_waits_for_no_report(pod: Pod) -> None:
    outcome = pod.ends(
        "finish('Failed', 'InvalidRow', failureClass='UserError', message='row 7')\nsys.exit(71)"
    )
    assert outcome.exit_code == 71
    folder = pod.workspace / "jobs" / "bot" / "report"
    assert '"reason": "InvalidRow"' in (folder / "events.jsonl").read_text()
    assert not (folder / "report.html").exists()


@pytest.mark.parametrize(
    ("trouble", "said"), [("file", "no report: exit code"), ("time", "no report: not finished")]
)
def test_a_report_that_cannot_be_made_is_one_line_of_a_success(pod: Pod, trouble: str, said: str) -> None:
    settings = {"report_seconds": 0.0} if trouble == "time" else {}
    if trouble == "file":
        (pod.workspace / "jobs" / "bot").mkdir(parents=True)
        (pod.workspace / "jobs" / "bot" / "report").write_text("in the way")
    assert pod.ends(_TRAINED, settings=settings).exit_code == 0
    assert any(said in line for line in pod.output)
