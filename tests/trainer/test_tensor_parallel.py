"""Ranks that share layers compute what one process does with whole ones, go on, and export a whole model."""

from __future__ import annotations

import itertools
import signal
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

import gang
import gradient_cells
import tensor_cells
from sft_trainer.batches import Plan
from sft_trainer.data.cache import TokenCache
from sft_trainer.data.packing import pack
from sftjob_operator.planning.heads import SHARED

Cell = dict[str, Any]
MODELS = {"llama": True, "qwen2": False}
"""Architectures, and whether their embeddings are the output layer."""
EVERY_MODEL = {"llama": False, "qwen2": True, "qwen3": False, "mistral": False}


def cell(stage: int, accumulation: int, packed: bool, **more: Any) -> Cell:
    return {
        "stage": stage,
        "accumulation": accumulation,
        "packed": packed,
        "method": "Full",
        "tensor": 2,
        **more,
    }


COVERING = [cell(1, 3, True), cell(2, 8, False), cell(2, 1, True, smoothing=0.1, checkpointing="Full")]
EVERY = [
    *(cell(*each) for each in itertools.product((1, 2), (1, 3, 8), (True, False))),
    cell(1, 3, True, checkpointing="Full"),
    cell(2, 3, True, smoothing=0.1),
]


def agree(ranks: int, models: dict[str, bool], cells: list[Cell], folder: Path) -> None:
    volumes = {kind: tensor_cells.workspace(folder / kind, kind, tied) for kind, tied in models.items()}
    found = gang.call(
        tensor_cells.steps, ranks, volumes={kind: str(at) for kind, at in volumes.items()}, cells=cells
    )
    assert max(found["loss"]) < 1e-5
    for kind, results in found["cells"].items():
        assert len(results) == len(cells)
        known: dict[float, Any] = {}
        for result in results:
            smoothing = result.get("smoothing", 0.0)
            if smoothing not in known:
                known[smoothing] = gradient_cells.reference(volumes[kind], "Full", smoothing)
            assert result["norms"] == pytest.approx(known[smoothing]["norms"], rel=1e-4), (kind, result)
            assert result["losses"] == pytest.approx(known[smoothing]["losses"], rel=1e-4), (kind, result)


@pytest.mark.processes
def test_gradient_norm_and_loss_equal_those_of_whole_layers(tmp_path: Path) -> None:
    agree(4, MODELS, COVERING, tmp_path)


@pytest.mark.processes
@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("ranks", [2, 4])
def test_so_they_do_for_every_model_that_is_not_refused(ranks: int, tmp_path: Path) -> None:
    assert {f"{kind.title()}ForCausalLM" for kind in EVERY_MODEL} == set(SHARED)
    agree(ranks, EVERY_MODEL, EVERY, tmp_path)


def test_ranks_that_share_layers_read_the_same_and_one_of_them_counts_it(tmp_path: Path) -> None:
    rows = TokenCache(gradient_cells.workspace(tmp_path) / "cache").train

    def plan(ranks: int, shared: int) -> Plan:
        return Plan(rows.lengths, 64, pack, 4, 2, ranks, seed=3, epochs=1, tensor_ranks=shared)

    shared, whole = plan(6, 3), plan(2, 1)
    assert shared.digest == whole.digest
    for rank in range(6):
        assert shared.micro_batches(1, rank) == whole.micro_batches(1, rank // 3)
    assert [shared.counts(rank) for rank in range(6)] == [True, False, False, True, False, False]


def changes(ranks: int, shared: int, stage: int, noise: float | None = None) -> Cell:
    return {
        "training__maxSteps": 4,
        "training__gradientAccumulationSteps": 4 * shared // ranks,
        "training__neftuneAlpha": noise,
        "deepspeed__zeroStage": stage,
        "deepspeed__tensorParallelSize": shared,
        "checkpoint__periodSteps": None,
        "evaluation__periodSteps": 2,
    }


@pytest.mark.processes
@pytest.mark.parametrize(
    ("whole_ranks", "shared_ranks", "noise"),
    [
        pytest.param(1, 2, None, id="with-fewer-groups"),
        pytest.param(2, 4, 5.0, id="as-it-was", marks=pytest.mark.soak),
    ],
)
def test_a_training_goes_on_and_exports_a_whole_model(
    whole_ranks: int, shared_ranks: int, noise: float | None, tmp_path: Path
) -> None:
    whole = gang.Job(tmp_path / "whole", whole_ranks, changes(whole_ranks, 1, 1, noise))
    assert whole.run().codes == [0] * whole_ranks
    first = gang.Job(tmp_path / "shared", 4, changes(4, 2, 1, noise))
    with first.start() as run:
        run.ranks.until("step 2/4")
        run.ranks.send(signal.SIGTERM)
        stopped = run.end()
    assert stopped.codes == [74] * 4, stopped.output
    assert "loss by chunks of positions" in stopped.output
    then = gang.Job(
        tmp_path / "shared", shared_ranks, changes(shared_ranks, 2, 2 if noise is None else 1, noise)
    )
    ended = then.run(attempt=2)
    assert ended.codes == [0] * shared_ranks, ended.output
    for what in ("loss", "eval_loss", "tokens"):
        assert then.curve(what) == pytest.approx(whole.curve(what), rel=1e-4), what
    one, other = (load_file(job.folder / "export" / "model.safetensors") for job in (whole, then))
    assert {name: tensor.shape for name, tensor in one.items()} == {n: t.shape for n, t in other.items()}
    assert all(tensor.allclose(other[name], atol=1e-4) for name, tensor in one.items())
    config = (then.folder / "export" / "config.json").read_text()
    assert config == (whole.folder / "export" / "config.json").read_text()


@pytest.mark.processes
@pytest.mark.soak
def test_layers_that_were_shared_otherwise_end_the_job_with_the_reason(tmp_path: Path) -> None:
    job = gang.Job(tmp_path / "volume", 2, {**changes(2, 2, 1), "training__maxSteps": 1})
    assert job.run().codes == [0, 0]
    ended = gang.Job(tmp_path / "volume", 2, changes(2, 1, 1)).run(attempt=2)
    assert ended.codes == [71, 71], ended.output
    assert ended.outcomes[0] is not None
    assert ended.outcomes[0].reason == "TensorParallelChanged"
