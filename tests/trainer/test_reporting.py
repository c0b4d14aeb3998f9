"""Curves, progress and log lines."""

import json
import logging
import re
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from sft_trainer.config import CheckpointFact, Progress
from sft_trainer.listening import Audience, Listener
from sft_trainer.metrics import Metrics
from sft_trainer.progress import ProgressFile, read_progress
from sft_trainer.reporting import Journal, Reporter, StepFacts, duration
from sft_trainer.starting import Start


def reporter(
    folder: Path, journal: Journal | None = None, *listeners: Listener, speaks: bool = True
) -> Reporter:
    return Reporter(
        speaks=speaks,
        progress=Progress(attempt=1, run_id="run", state="Starting", time="t"),
        file=ProgressFile(folder / "progress.json"),
        curves=folder / "report" / "metrics.jsonl",
        metrics=Metrics(sftjob="job", attempt=1, rank=0),
        journal=journal or Journal(),
        start=Start(),
        audience=Audience(listeners),
    )


def facts(step: int, **changes: Any) -> StepFacts:
    chosen: dict[str, Any] = {
        "step": step,
        "epoch": 0.5,
        "loss": 2.03125,
        "learning_rate": 9.8e-5,
        "gradient_norm": 1.23,
        "tokens": 620,
        "supervised": 400,
        "seconds": 2.0,
        "own_tokens": 310,
        "own_supervised": 200,
        "own_padding": 0,
        "phases": {},
    }
    return StepFacts(**(chosen | changes))


def fact(step: int) -> CheckpointFact:
    return CheckpointFact(name=f"step-{step}", step=step, attempt=1, bytes=10, time="t")


def steps(folder: Path) -> list[int]:
    lines = (folder / "report" / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["step"] for line in lines]


def test_the_first_step_says_once_what_the_start_was_spent_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    told = reporter(tmp_path)
    told.started(60, None, "fp32", "0", "SDPA")
    assert "started in" not in caplog.text
    told.step(facts(1))
    told.step(facts(2))
    assert caplog.text.count("started in") == 1
    assert re.search(r"started in \d+\.\d s: first step \d+\.\d\n", caplog.text)


def test_the_phases_of_a_start_add_up_and_begin_with_the_process() -> None:
    before = time.time() - psutil.Process().create_time()
    clock = Start()
    for phase in ("imports", "resume", "weights", "resume"):
        clock.lap(phase)
    after = time.time() - psutil.Process().create_time()
    assert list(clock.phases) == ["imports", "resume", "weights"]
    assert all(seconds >= 0 for seconds in clock.phases.values())
    assert before - 0.1 <= sum(clock.phases.values()) <= after + 0.1


def test_a_step_is_one_plain_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    told = reporter(tmp_path)
    told.started(60, None, "fp32", "0", "SDPA")
    told.step(facts(12))
    assert "step 12/60 loss 2.0312 lr 9.8e-05 grad 1.230 tok/s 310 eta 1m36s" in caplog.text


def test_progress_says_what_the_operator_shows(tmp_path: Path) -> None:
    told = reporter(tmp_path)
    told.started(60, 10, "fp32", "0", "SDPA")
    told.step(facts(12))
    told.saved(fact(12), [12], 0.5)
    told.phase("Exporting")
    progress = read_progress(tmp_path / "progress.json")
    assert progress is not None
    assert (progress.state, progress.step, progress.total_steps) == ("Exporting", 12, 60)
    assert (progress.resumed_from_step, progress.last_verified_step) == (10, 12)
    assert (progress.tokens_per_second, progress.estimated_remaining_seconds) == (310.0, 96)


def test_curves_are_cut_to_the_step_that_was_resumed(tmp_path: Path) -> None:
    told = reporter(tmp_path)
    told.started(60, None, "fp32", "0", "SDPA")
    for step in range(1, 6):
        told.step(facts(step))
    told.evaluated(4, 1.0, 2.7, 0.1)
    with open(tmp_path / "report" / "metrics.jsonl", "a") as file:
        file.write('{"step": 6, "lo')  # killed while writing
    again = reporter(tmp_path)
    again.started(60, 3, "fp32", "0", "SDPA")
    again.step(facts(4))
    assert steps(tmp_path) == [1, 2, 3, 4]


def test_whatever_a_lost_node_left_among_the_curves_is_dropped_without_ending_the_training(
    tmp_path: Path,
) -> None:
    path = tmp_path / "report" / "metrics.jsonl"
    path.parent.mkdir()
    path.write_bytes(b'{"step": 1}\n' + bytes(9) + b'\xff\xfe\n[]\n{"step": Infinity}\n{"step": 2}\n')
    reporter(tmp_path).started(60, 3, "fp32", "0", "SDPA")
    assert steps(tmp_path) == [1, 2]
    assert list(path.parent.iterdir()) == [path]


def test_only_rank_0_speaks(tmp_path: Path) -> None:
    journal = Journal()
    quiet = reporter(tmp_path, journal, speaks=False)
    quiet.started(60, None, "fp32", "0", "SDPA")
    quiet.step(facts(1))
    quiet.saved(fact(1), [1], 0.5)
    assert list(tmp_path.iterdir()) == []
    assert (journal.last_step, journal.last_verified_step) == (1, 1)


def test_the_journal_forgets_checkpoints_that_were_removed(tmp_path: Path) -> None:
    journal = Journal()
    told = reporter(tmp_path, journal)
    for step in (1, 2, 3):
        told.saved(fact(step), [step - 1, step], 0.1)
    assert [known.step for known in journal.checkpoints] == [2, 3]


def test_a_full_volume_costs_curves_and_not_the_training(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "report").write_text("a file where a folder should be")
    told = reporter(tmp_path)
    told.step(facts(1))
    told.step(facts(2))
    assert caplog.text.count("training goes on") == 1


@pytest.mark.parametrize(("seconds", "shown"), [(0, "0s"), (59, "59s"), (130, "2m10s"), (11100, "3h05m")])
def test_durations_are_short(seconds: int, shown: str) -> None:
    assert duration(seconds) == shown
