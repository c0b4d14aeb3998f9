"""Early stopping and the best checkpoint with real ranks, killed in the middle of patience too."""

import json
import re
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import gang
from sft_trainer.checkpoint import commit, state

pytestmark = pytest.mark.processes

# Rows of random tokens: the training loss falls, the evaluation loss rises after a few steps.
CHANGES: dict[str, Any] = {
    "training__maxSteps": 40,
    "training__learningRate": 1e-2,
    "training__scheduler": {"type": "Constant", "warmupSteps": 0, "minLearningRate": 0.0},
    "training__earlyStopping": {"metric": "eval_loss", "patience": 3, "minDelta": 0.0},
    "evaluation__periodSteps": 2,
    "checkpoint__periodSteps": 3,
    "checkpoint__keepLast": 2,
    "checkpoint__keepBest": 1,
    "export__checkpoint": "Best",
}


def evaluations(job: gang.Job) -> dict[int, float]:
    """Without that of the base model at step 0, which is no candidate, though here it is the lowest of all."""
    lines = (job.folder / "report" / "metrics.jsonl").read_text().splitlines()
    found = {x["step"]: x["eval_loss"] for line in lines if "eval_loss" in (x := json.loads(line))}
    assert found.pop(0) < min(found.values())
    return found


def weights(job: gang.Job) -> dict[str, torch.Tensor]:
    return load_file(job.folder / "export" / "model.safetensors")


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> gang.Job:
    """A training that was not disturbed."""
    job = gang.Job(tmp_path_factory.mktemp("whole") / "volume", changes=CHANGES)
    ended = job.run()
    assert ended.codes == [0, 0], ended.output
    result = ended.outcomes[0].train  # type: ignore[union-attr]
    losses = evaluations(job)
    best = min(losses, key=lambda step: losses[step])
    assert result is not None
    assert result.steps == max(losses) == best + 3 * 2
    assert (result.planned_steps, result.exported_step) == (40, best)
    assert result.eval_loss == losses[best]
    assert f"stopped early at step {best + 6} of 40" in ended.output
    return job


def test_the_best_checkpoint_is_kept_and_exported(whole: gang.Job, tmp_path: Path) -> None:
    losses = evaluations(whole)
    best = min(losses, key=lambda step: losses[step])
    checkpoints = whole.folder / "checkpoints"
    newest = commit.steps(checkpoints)
    assert best in newest
    assert len(newest) == 3
    assert newest[0] == max(losses)
    saved = state.read(checkpoints / f"step-{best}")
    assert saved is not None
    assert saved.history.best == saved.history.last
    # The same steps, and no more: the last state of that training is what was exported here.
    short = gang.Job(tmp_path / "volume", changes=CHANGES)
    constant_rate = {"training__maxSteps": best, "export__checkpoint": "Last"}
    assert short.run(**constant_rate).codes == [0, 0]
    assert same(weights(short), weights(whole))


def test_a_run_killed_in_the_middle_of_patience_stops_at_the_same_step(
    whole: gang.Job, tmp_path: Path
) -> None:
    losses = evaluations(whole)
    killed = gang.Job(tmp_path / "volume", changes=CHANGES)
    last = max(losses)
    with killed.start() as run:
        run.ranks.until(f"step {last - 1}/40")  # after two evaluations without an improvement
        run.ranks.send(signal.SIGKILL)
        assert run.end().codes == [-9, -9]
    ended = killed.run(attempt=2)
    assert ended.codes == [0, 0], ended.output
    assert ended.outcomes[0].resumed_from_step not in (None, 0)  # type: ignore[union-attr]
    assert killed.curve() == whole.curve()
    assert evaluations(killed) == losses
    assert same(weights(killed), weights(whole))


def test_a_signal_in_an_evaluation_does_not_cost_an_evaluation(whole: gang.Job, tmp_path: Path) -> None:
    losses = evaluations(whole)
    stopped = gang.Job(tmp_path / "volume", changes=CHANGES | {"checkpoint__periodSteps": 100})
    with stopped.start() as run:
        run.ranks.until("step 1/40")
        run.ranks.send(signal.SIGTERM, [1])
        assert run.end().codes == [74, 74]
    assert stopped.run(attempt=2).codes == [0, 0]
    assert evaluations(stopped) == losses
    assert same(weights(stopped), weights(whole))


def test_a_training_that_stopped_early_only_exports_when_it_starts_again(
    whole: gang.Job, tmp_path: Path
) -> None:
    again = gang.Job(tmp_path / "volume", changes=CHANGES)
    shutil.copytree(whole.volume, again.volume, dirs_exist_ok=True)
    shutil.rmtree(again.folder / "export")
    ended = again.run(attempt=2)
    assert ended.codes == [0, 0], ended.output
    assert not re.search(r"step \d+/\d+ loss", ended.output), "a step was taken"
    assert same(weights(again), weights(whole))
    best = ended.outcomes[0].train.exported_step  # type: ignore[union-attr]
    shutil.rmtree(again.folder / "checkpoints" / f"step-{best}")
    lost = again.run(attempt=3)
    assert lost.codes == [71, 71]
    assert lost.outcomes[0].reason == "BestCheckpointLost"  # type: ignore[union-attr]


@pytest.mark.soak
def test_the_best_of_a_partitioned_model_is_exported_too(tmp_path: Path) -> None:
    job = gang.Job(tmp_path / "volume", changes=CHANGES | {"deepspeed__zeroStage": 3})
    ended = job.run()
    assert ended.codes == [0, 0], ended.output
    result = ended.outcomes[0].train  # type: ignore[union-attr]
    assert result is not None
    assert result.exported_step == min(evaluations(job), key=lambda step: evaluations(job)[step])
    assert result.exported_step < result.steps
