"""TensorBoard and the others hear everything, and can do no harm."""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from sft_trainer.reporting import StepFacts
from sft_trainer.trackers import boards
from sft_trainer.trackers.base import Maker, TrackedRun, Tracking, Values


def facts(step: int, loss: float | None = 2.0) -> StepFacts:
    return StepFacts(
        step=step,
        epoch=0.5,
        loss=loss,
        learning_rate=1e-4,
        gradient_norm=1.5,
        tokens=600,
        supervised=400,
        seconds=2.0,
        own_tokens=300,
        own_supervised=200,
        own_padding=0,
        phases={},
    )


def tracking(folder: Path, *makers: tuple[str, Maker], uid: str = "uid-1") -> Tracking:
    return Tracking(lambda step: TrackedRun(uid, "bot", folder, {"training": {"seed": 7}}, step), makers)


class Remembering:
    """A tracker that keeps what it hears."""

    def __init__(self, run: TrackedRun) -> None:
        self.run, self.heard, self.closed = run, [], False  # type: ignore[var-annotated]

    def log(self, step: int, values: Values) -> None:
        self.heard.append((step, dict(values)))

    def close(self) -> None:
        self.closed = True


def test_a_tracker_hears_steps_and_evaluations_in_their_order(tmp_path: Path) -> None:
    made: list[Remembering] = []
    told = tracking(tmp_path, ("it", lambda run: made.append(Remembering(run)) or made[0]))
    told.started(10, 4, {})
    told.step(facts(5))
    told.evaluated(5, 1.0, 2.7)
    told.step(facts(6, loss=None))
    told.close(5)
    assert made[0].run.resumed_from == 4
    assert made[0].heard[0] == (5, {
        "train/loss": 2.0, "train/learning_rate": 1e-4, "train/gradient_norm": 1.5,
        "train/epoch": 0.5, "train/tokens_per_second": 300.0,
    })  # fmt: skip
    assert made[0].heard[1] == (5, {"eval/loss": 1.0, "eval/perplexity": 2.7})
    assert "train/loss" not in made[0].heard[2][1]
    assert made[0].closed


def test_a_tracker_that_fails_is_one_warning_and_the_other_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made: list[Remembering] = []

    def broken(run: TrackedRun) -> Any:
        raise SystemExit("no licence")

    told = tracking(tmp_path, ("bad", broken), ("good", lambda run: made.append(Remembering(run)) or made[0]))
    told.started(10, None, {})
    for step in range(1, 4):
        told.step(facts(step))
    told.close(5)
    assert [step for step, _ in made[0].heard] == [1, 2, 3]
    assert caplog.text.count("bad gets no more values, training goes on: SystemExit('no licence')") == 1


def test_a_tracker_that_hangs_is_left_behind(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    release = threading.Event()

    def hanging(run: TrackedRun) -> Any:
        release.wait(60)
        raise AssertionError

    told = tracking(tmp_path, ("slow", hanging))
    told.started(10, None, {})
    for step in range(10_050):
        told.step(facts(step))
    started = time.monotonic()
    told.close(0.2)
    assert time.monotonic() - started < 5
    assert caplog.text.count("slow is too slow and misses values") == 1
    assert "slow did not finish in time" in caplog.text
    release.set()


def test_the_environment_chooses_and_what_is_not_installed_is_one_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(
        boards.importlib.util, "find_spec", lambda name: None if name == "mlflow" else object()
    )
    wanted = {"WANDB_API_KEY": "k", "MLFLOW_TRACKING_URI": "http://mlflow"}
    assert [name for name, _ in boards.makers({})] == ["TensorBoard"]
    assert [name for name, _ in boards.makers(wanted)] == ["TensorBoard", "Weights & Biases"]
    assert "MLflow is asked for, but the image has no mlflow" in caplog.text
    assert [name for name, _ in boards.makers({"WANDB_API_KEY": "k", "WANDB_MODE": "disabled"})] == [
        "TensorBoard"
    ]
    assert len(list(boards.makers({"WANDB_MODE": "offline"}))) == 2


class FakeWandb(ModuleType):
    """A fake of the edge to W&B: it takes calls and answers nothing that is not asked here."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.calls: list[tuple[str, Any]] = []
        self.Settings = lambda **given: given

    def init(self, **given: Any) -> Any:
        self.calls.append(("init", given))
        return SimpleNamespace(
            log=lambda values, step: self.calls.append(("log", (step, values))),
            finish=lambda: self.calls.append(("finish", None)),
        )


def test_a_run_of_w_and_b_is_the_job_whatever_the_attempt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.setenv("WANDB_PROJECT", "chat")
    told = tracking(tmp_path, ("W&B", boards.WeightsAndBiases))
    told.started(10, 4, {})
    told.step(facts(5))
    told.close(5)
    given = fake.calls[0][1]
    assert (given["id"], given["resume"], given["project"], given["name"]) == (
        "uid-1",
        "allow",
        "chat",
        "bot",
    )
    assert given["config"] == {"training": {"seed": 7}}
    assert fake.calls[1][1][0] == 5
    assert fake.calls[-1] == ("finish", None)


class FakeMLflow(ModuleType):
    """A fake of the edge to MLflow: one server's experiments and runs in memory."""

    def __init__(self) -> None:
        super().__init__("mlflow")
        self.runs: dict[str, dict[str, Any]] = {}
        self.entities = SimpleNamespace(Metric=lambda key, value, time, step: (key, value, step))
        self.MlflowClient = lambda: self

    def get_experiment_by_name(self, name: str) -> None:
        return None

    def create_experiment(self, name: str) -> str:
        return name

    def search_runs(self, experiments: list[str], filter_string: str) -> list[Any]:
        found = [name for name, run in self.runs.items() if f"'{run['tags']['sftjob.uid']}'" in filter_string]
        return [SimpleNamespace(info=SimpleNamespace(run_id=name)) for name in found]

    def create_run(self, experiment: str, run_name: str, tags: dict[str, str]) -> Any:
        name = f"run-{len(self.runs)}"
        self.runs[name] = {"tags": tags, "params": {}, "metrics": [], "ended": 0}
        return SimpleNamespace(info=SimpleNamespace(run_id=name))

    def log_param(self, run: str, name: str, value: str) -> None:
        assert name not in self.runs[run]["params"], "MLflow refuses to change a parameter"
        self.runs[run]["params"][name] = value

    def log_batch(self, run: str, metrics: list[Any]) -> None:
        self.runs[run]["metrics"] += metrics

    def update_run(self, run: str, status: str) -> None:
        assert status == "RUNNING"
        self.runs[run]["ended"] -= 1

    def set_terminated(self, run: str) -> None:
        self.runs[run]["ended"] += 1


def test_a_later_attempt_goes_on_with_the_run_of_mlflow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fake = FakeMLflow()
    monkeypatch.setitem(sys.modules, "mlflow", fake)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    for resumed_from, uid in ((None, "uid-1"), (1, "uid-1"), (None, "uid-2")):
        told = tracking(tmp_path, ("MLflow", boards.MLflow), uid=uid)
        told.started(10, resumed_from, {})
        told.step(facts((resumed_from or 0) + 1))
        told.close(5)
    assert not caplog.text
    assert sorted(fake.runs) == ["run-0", "run-1"]
    assert fake.runs["run-0"]["params"] == {"training.seed": "7"}
    assert [m[2] for m in fake.runs["run-0"]["metrics"] if m[0] == "train/loss"] == [1, 2]
    assert fake.runs["run-0"]["ended"] == 1, "ended, taken up, ended"


@pytest.mark.processes  # imports torch
def test_tensorboard_reads_a_resumed_training_as_one_curve(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    first = tracking(tmp_path, ("TensorBoard", boards.TensorBoard))
    first.started(6, None, {})
    first.evaluated(0, 3.0, 20.0)
    for step in range(1, 6):
        first.step(facts(step, loss=float(step)))
    first.close(60)
    time.sleep(1.1)  # files are named by the second
    again = tracking(tmp_path, ("TensorBoard", boards.TensorBoard))
    again.started(6, 3, {})
    for step in range(4, 7):
        again.step(facts(step, loss=10.0 + step))
    again.close(60)
    read = EventAccumulator(str(tmp_path / "tensorboard"))
    read.Reload()
    assert [(e.step, e.value) for e in read.Scalars("train/loss")] == [
        (1, 1), (2, 2), (3, 3), (4, 14), (5, 15), (6, 16),
    ]  # fmt: skip
    assert [(e.step, e.value) for e in read.Scalars("eval/loss")] == [(0, 3.0)]
    assert not [one for one in caplog.records if one.name.startswith("sft_trainer")]
