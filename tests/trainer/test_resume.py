"""A run that was killed twice, in a step and in a save, ends with the very curve of one that was not."""

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import gang
import tiny
from resume_peaks import resumed
from sft_trainer.checkpoint import manifest
from sft_trainer.precision import native

pytestmark = pytest.mark.processes

CELLS = [(precision, stage, 0) for stage in (1, 2, 3) for precision in ("fp32", "bf16")]
OFFLOADED = [
    ("bf16", 2, 1),
    ("bf16", 3, 2),
    *(pytest.param("fp32", stage, 1, marks=pytest.mark.soak) for stage in (1, 2, 3)),
]


def job(volume: Path, precision: str, stage: int, offloaded: int = 0) -> gang.Job:
    """With nothing offloaded to the CPU, the optimizer, or that and the parameters."""
    noise = 5.0 if stage == 2 else None  # drawn anew in every step
    changes = {
        "training__precision": precision,
        "training__neftuneAlpha": noise,
        "deepspeed__zeroStage": stage,
        "deepspeed__offloadOptimizer": "CPU" if offloaded > 0 else "None",
        "deepspeed__offloadParameters": "CPU" if offloaded > 1 else "None",
    }
    return gang.Job(volume, changes=changes)


@pytest.mark.parametrize(("precision", "stage", "offloaded"), CELLS + OFFLOADED)
def test_the_loss_after_kill_9_and_resume_is_bit_equal(
    precision: str, stage: int, offloaded: int, tmp_path: Path
) -> None:
    whole, killed = (job(tmp_path / name, precision, stage, offloaded) for name in ("whole", "killed"))
    assert whole.run().codes == [0, 0]

    with killed.start() as run:
        run.ranks.until("step 4/8")
        run.ranks.send(signal.SIGKILL)
        assert run.end().codes == [-9, -9]
    with killed.start() as run:
        run.ranks.until("step 5/8")
        checkpoints = killed.folder / "checkpoints"
        run.ranks.until_there(lambda: any(checkpoints.glob(".staging-*/engine/*")))
        run.ranks.send(signal.SIGKILL)
        run.end()
    assert any(checkpoints.glob(".staging-*")), "it was not killed inside a save"
    assert not (checkpoints / "step-6").exists()
    ended = killed.run(attempt=2)

    assert ended.codes == [0, 0]
    assert "left by a run that ended while saving" in ended.output
    assert ended.outcomes[0] is not None
    assert ended.outcomes[0].resumed_from_step == 3
    assert killed.curve() == whole.curve()
    assert not list(checkpoints.glob(".staging-*"))


def test_two_runs_of_the_same_seed_are_bit_equal_and_those_of_another_are_not(tmp_path: Path) -> None:
    lora = {"rank": 4, "alpha": 8, "dropout": 0.2, "targetModules": ["AllLinear"]}
    chosen = {"training__method": "LoRA", "training__lora": lora, "training__maxSteps": 3}
    runs = [
        gang.Job(tmp_path / str(number), changes={**chosen, "training__seed": seed})
        for number, seed in enumerate((7, 7, 8))
    ]
    for run in runs:
        assert run.run().codes == [0, 0]
    one, same, other = [(run.folder / "export" / "model.safetensors").read_bytes() for run in runs]
    assert one == same
    assert runs[0].curve() == runs[1].curve() != runs[2].curve()
    assert one != other


@pytest.mark.parametrize(
    ("variant", "stage"),
    [
        pytest.param("DoRA", 0, marks=pytest.mark.soak),
        pytest.param("RSLoRA", 1, marks=pytest.mark.soak),
        ("DoRA", 2),
        ("LoRA", 3),
    ],
)
def test_adapters_resume_bit_equal_under_every_stage(variant: str, stage: int, tmp_path: Path) -> None:
    lora = {"rank": 4, "alpha": 8, "dropout": 0.1, "targetModules": ["AllLinear"], "variant": variant}
    changes = {"training__method": "LoRA", "training__lora": lora, "training__learningRate": 1e-2}
    changes |= {"deepspeed__zeroStage": stage, "training__maxSteps": 5, "evaluation__periodSteps": None}
    whole, killed = (gang.Job(tmp_path / name, changes=changes) for name in ("whole", "killed"))
    assert whole.run().codes == [0, 0]
    with killed.start() as run:
        run.ranks.until("step 4/5")
        run.ranks.send(signal.SIGKILL)
        run.end()
    ended = killed.run(attempt=2)
    assert ended.codes == [0, 0], ended.output
    assert ended.outcomes[0].resumed_from_step == 3  # type: ignore[union-attr]
    assert killed.curve() == whole.curve()
    one, other = (load_file(job.folder / "export" / "model.safetensors") for job in (whole, killed))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_sigterm_to_one_rank_saves_and_stops_all_and_the_next_run_goes_on(tmp_path: Path) -> None:
    changes = {"checkpoint__periodSteps": None, "training__maxSteps": 30}
    stopped, whole = (
        gang.Job(tmp_path / "stopped", changes=changes),
        gang.Job(tmp_path / "whole", changes=changes),
    )
    with stopped.start() as run:
        run.ranks.until("step 2/30")
        run.ranks.send(signal.SIGTERM, [1])
        ended = run.end()
    assert ended.codes == [74, 74]
    step = ended.outcomes[0].last_verified_step  # type: ignore[union-attr]
    assert step is not None
    assert step == ended.outcomes[1].last_step  # type: ignore[union-attr]
    again = stopped.run()
    assert again.outcomes[0].resumed_from_step == step  # type: ignore[union-attr]
    whole.run()
    assert stopped.curve() == whole.curve()


def test_sigterm_during_an_evaluation_breaks_it_off_and_no_further_step_is_taken(tmp_path: Path) -> None:
    volume = tmp_path / "volume"
    gang.write_cache(volume / "cache", gang.token_rows(40, seed=1), gang.token_rows(3000, seed=2))
    job = gang.Job(volume, changes={"evaluation__periodSteps": 2})
    with job.start() as run:
        progress = run.scratch / "progress.json"
        run.ranks.until("step 2/8")
        run.ranks.until_there(lambda: '"Evaluating"' in progress.read_text())
        run.ranks.send(signal.SIGTERM, [1])
        ended = run.end()
    assert ended.codes == [74, 74], ended.output
    assert ended.outcomes[0].last_verified_step == 2  # type: ignore[union-attr]
    assert ended.outcomes[0].last_step == 2  # type: ignore[union-attr]
    assert "step 2 eval loss" not in ended.output


def test_a_finished_training_that_starts_again_only_exports(tmp_path: Path) -> None:
    job = gang.Job(tmp_path / "volume")
    first, again = job.run(), job.run(attempt=2)
    assert again.codes == [0, 0]
    assert "step 1/8" not in again.output
    assert again.outcomes[0].train == first.outcomes[0].train  # type: ignore[union-attr]


def test_a_damaged_checkpoint_is_passed_over_for_an_older_one(tmp_path: Path) -> None:
    job = gang.Job(tmp_path / "volume")
    job.run()
    whole = job.curve()
    damaged = next((job.folder / "checkpoints" / "step-8").rglob("*optim_states.pt"))
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"!")
    ended = job.run(attempt=2)
    assert ended.codes == [0, 0]
    assert "checkpoint step-8 is not used" in ended.output
    assert ended.outcomes[0].resumed_from_step == 6  # type: ignore[union-attr]
    assert job.curve() == whole


def test_damage_that_only_loading_finds_costs_one_attempt_and_one_checkpoint(tmp_path: Path) -> None:
    job = gang.Job(tmp_path / "volume")
    job.run()
    whole, newest = job.curve(), job.folder / "checkpoints" / "step-8"
    damaged = next(newest.rglob("*zero_pp_rank_1_*optim_states.pt"))
    damaged.write_bytes(damaged.read_bytes()[:-300] + bytes(300))
    listing = json.loads((newest / manifest.MANIFEST).read_text())
    for entry in listing["files"]:  # as if the damage lay between two sampled blocks
        if entry["path"] == damaged.relative_to(newest).as_posix():
            entry["sample"] = manifest.sample(damaged, entry["size"])
    (newest / manifest.MANIFEST).write_text(json.dumps(listing))
    failed = job.run(attempt=2)
    assert failed.codes[1] == 70, failed.output
    assert "the next attempt continues from an older one" in failed.outcomes[1].message  # type: ignore[union-attr]
    ended = job.run(attempt=3)
    assert ended.codes == [0, 0]
    assert ended.outcomes[0].resumed_from_step == 6  # type: ignore[union-attr]
    assert job.curve() == whole


def test_other_data_under_the_same_name_never_continues_the_old_weights(tmp_path: Path) -> None:
    job = gang.Job(tmp_path / "volume", ranks=1)
    other = {"job__uid": "uid-2", "identity": "identity-2"}
    job.run()
    refused = job.run(**other)
    assert refused.codes == [71]
    assert refused.outcomes[0].reason == "CheckpointsOfAnotherJob"  # type: ignore[union-attr]
    fresh = job.run(**other, checkpoint__onExisting="StartFresh")
    assert fresh.codes == [0]
    assert fresh.outcomes[0].resumed_from_step is None  # type: ignore[union-attr]
    kept = {path.name.split(".")[0] for path in job.folder.iterdir() if path.name.endswith("-uid-1")}
    assert kept == {"checkpoints", "export", "report"}


def test_a_newer_attempt_keeps_an_old_run_from_committing(tmp_path: Path) -> None:
    job = gang.Job(tmp_path / "volume", changes={"training__maxSteps": 40, "checkpoint__periodSteps": 20})
    with job.start() as run:
        run.ranks.until("step 1/40")
        newer = '{"uid": "uid-1", "attempt": 2, "started": "2030-01-01T00:00:00Z", "runId": "newer"}'
        (job.folder / "fence.json").write_text(newer)
        ended = run.end()
    assert ended.codes == [75, 75]
    assert not list((job.folder / "checkpoints").glob("step-*"))
    assert job.run().codes == [75, 75]


def test_a_run_with_automatic_precision_keeps_that_of_its_checkpoint(tmp_path: Path) -> None:
    other = "fp32" if "bf16" in native("cpu") else "bf16"  # not what Auto would choose on this machine
    job = gang.Job(tmp_path / "volume", ranks=1, changes={"training__maxSteps": 3})
    assert job.run(training__precision=other).codes == [0]
    more = {"attempt": 2, "training__maxSteps": 4}
    ended = job.run(**more, training__precision="Auto")
    assert ended.codes == [0], ended.output
    assert f"precision {other} (as in the checkpoint)" in ended.output
    assert ended.outcomes[0].resumed_from_step == 3  # type: ignore[union-attr]
    refused = job.run(**more, training__precision="bf16" if other == "fp32" else "fp32")
    assert refused.codes == [71]
    assert refused.outcomes[0].reason == "PrecisionChanged"  # type: ignore[union-attr]


def test_a_job_created_anew_with_other_batches_is_refused_and_with_more_steps_continued(
    tmp_path: Path,
) -> None:
    job = gang.Job(tmp_path / "volume", ranks=1, changes={"training__maxSteps": 3})
    anew = {"job__uid": "uid-2"}
    job.run()
    refused = job.run(**anew, training__globalBatchSize=2, training__gradientAccumulationSteps=1)
    assert refused.codes == [71]
    assert refused.outcomes[0].reason == "BatchesChanged"  # type: ignore[union-attr]
    continued = job.run(**anew, training__maxSteps=5)
    assert continued.codes == [0], continued.output
    assert continued.outcomes[0].resumed_from_step == 3  # type: ignore[union-attr]


def test_a_resume_takes_no_memory_for_the_files_and_keeps_none_of_them(tmp_path: Path) -> None:
    gang.Job(tmp_path)  # its rows are there before the ranks, each of which would make them
    tiny.model(tmp_path / "models" / "large", hidden=768, layers=3)
    cells: list[dict[str, Any]] = [
        {"deepspeed__zeroStage": 2},
        {"deepspeed__zeroStage": 3, "training__precision": "bf16"},
        {"deepspeed__zeroStage": 0, "training__precision": "bf16"},
        {"deepspeed__zeroStage": 2, "training__precision": "bf16", "deepspeed__offloadOptimizer": "CPU"},
    ]
    for cell, found in zip(
        cells, gang.call(resumed, 2, volume=str(tmp_path), model="models/large", cells=cells), strict=True
    ):
        assert found["equal"], cell
        assert not found["mapped"], cell
        # What is made is the optimizer's own state, which on a GPU is not here.
        assert max(found["peaks"]) < found["held"] + 8e6, (cell, found)
