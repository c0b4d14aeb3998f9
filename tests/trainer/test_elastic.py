"""A training that goes on with other numbers of ranks has the curve of one that never changed."""

import json
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import gang
from sft_trainer.checkpoint import manifest

pytestmark = pytest.mark.processes

LORA = {"rank": 4, "alpha": 8, "dropout": 0.0, "targetModules": ["AllLinear"]}
STEPS = 6
Gang = tuple[int, int]  # ranks, ZeRO stage


def changes(ranks: int, stage: int, method: str, precision: str) -> dict[str, Any]:
    return {
        "training__maxSteps": STEPS,
        "training__method": method,
        "training__lora": LORA if method == "LoRA" else None,
        "training__gradientAccumulationSteps": 4 // ranks,
        "training__precision": precision,
        "deepspeed__zeroStage": stage,
        "checkpoint__periodSteps": None,
        "evaluation__periodSteps": None,
    }


def train(volume: Path, gangs: Sequence[Gang], method: str, precision: str) -> gang.Job:
    """Each of `gangs` trains two steps and is stopped; the last one trains to the end."""
    for number, (ranks, stage) in enumerate(gangs):
        more = {**changes(ranks, stage, method, precision), "attempt": number + 1}
        job, last = gang.Job(volume, ranks, more), number + 1 == len(gangs)
        with job.start() as run:
            if not last:
                run.ranks.until(f"step {2 * number + 1}/{STEPS}")
                run.ranks.send(signal.SIGTERM)
            ended = run.end()
        assert ended.codes == [0 if last else 74] * ranks, ended.output
        assert ended.outcomes[0] is not None
        assert ended.outcomes[0].last_step == (STEPS if last else 2 * number + 2)
    return job


def consumed(job: gang.Job) -> int:
    state = json.loads((job.folder / "checkpoints" / f"step-{STEPS}" / "trainer_state.json").read_text())
    return int(state["consumedSequences"])


def agree(folder: Path, gangs: Sequence[Gang], method: str, precision: str, tolerance: float) -> None:
    whole = train(folder / "fixed", gangs[:1], method, precision)
    resized = train(folder / "resized", gangs, method, precision)
    expected, found = whole.curve(), resized.curve()
    assert set(found) == set(expected) == set(range(1, STEPS + 1))
    assert {step: loss / expected[step] for step, loss in found.items()} == {
        step: pytest.approx(1, abs=tolerance) for step in found
    }
    assert consumed(resized) == consumed(whole)
    for step in (2, 4, 6):  # those of other gangs were only read
        assert manifest.problem(resized.folder / "checkpoints" / f"step-{step}", every_byte=True) is None


def test_two_ranks_then_one_then_four_train_as_two_do_also_over_zero_stages(tmp_path: Path) -> None:
    agree(tmp_path, [(2, 2), (1, 3), (4, 1)], "Full", "fp32", 1e-4)


@pytest.mark.soak
@pytest.mark.parametrize("method", ["Full", "LoRA"])
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_two_ranks_then_one_then_four_train_as_two_do(stage: int, method: str, tmp_path: Path) -> None:
    agree(tmp_path, [(2, stage), (1, stage), (4, stage)], method, "fp32", 1e-4)


@pytest.mark.soak
@pytest.mark.parametrize("gangs", [[(3, 3), (1, 1), (2, 3)], [(2, 1), (4, 3), (4, 2)]])
def test_uneven_parts_and_stages_that_change_alone_train_on_as_well(
    gangs: list[Gang], tmp_path: Path
) -> None:
    agree(tmp_path, gangs, "LoRA", "fp32", 1e-4)


@pytest.mark.soak
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_master_weights_stay_exact_where_training_is_in_bf16(stage: int, tmp_path: Path) -> None:
    agree(tmp_path, [(2, stage), (1, stage), (4, stage)], "Full", "bf16", 2e-2)


def test_a_stage_without_partitions_is_not_continued_by_one_with_them(tmp_path: Path) -> None:
    job = gang.Job(tmp_path / "volume", 1, {"training__maxSteps": 1, "deepspeed__zeroStage": 0})
    assert job.run().codes == [0]
    refused = job.run(attempt=2, deepspeed__zeroStage=2)
    assert refused.codes == [71]
    assert refused.outcomes[0] is not None
    assert refused.outcomes[0].reason == "ZeROStageChanged"
