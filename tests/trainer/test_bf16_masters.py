"""Weights that are bf16 only: rounding by chance keeps what rounding to the nearest loses, and resumes to the bit."""

import functools
import math
from pathlib import Path
from typing import Any

import pytest
import torch

import gang
import gradient_cells
from sft_trainer import engine as engines
from sft_trainer import loop
from sft_trainer.bf16adam import BF16Adam, add_noise
from sft_trainer.config import TrainConfig
from sft_trainer.distributed import World

processes = pytest.mark.processes
BF16 = torch.bfloat16


def rounded(values: torch.Tensor, seed: int) -> torch.Tensor:
    noisy = values.clone()
    add_noise(noisy, torch.Generator().manual_seed(seed))
    return noisy


def test_rounding_by_chance_is_right_on_average_and_takes_neighbours_only() -> None:
    value = -(1 + 0.3 / 128)  # three tenths of the way from -1 to the next bf16 number
    found = rounded(torch.full((1_000_000,), value), seed=1)
    assert set(found.tolist()) == {-1.0, -1 - 1 / 128}
    share = float((found < -1).float().mean())
    assert share == pytest.approx(0.3, abs=4 * math.sqrt(0.3 * 0.7 / 1e6))


def test_what_bf16_has_stays_as_it_is() -> None:
    exact = torch.randn(1000, generator=torch.Generator().manual_seed(0)).to(BF16).float()
    exact[:3] = torch.tensor([0.0, math.inf, -math.inf])
    assert torch.equal(rounded(exact, seed=2), exact)


def adam(weights: torch.Tensor, *, stochastic: bool, rate: float = 1e-4, decay: float = 0.0) -> BF16Adam:
    return BF16Adam(
        [weights],
        lr=rate,
        betas=(0.9, 0.98),
        eps=1e-8,
        weight_decay=decay,
        decoupled=True,
        stochastic=stochastic,
        seed=3,
        rank=0,
    )


def test_updates_below_the_last_bit_are_lost_to_the_nearest_and_kept_by_chance() -> None:
    """A hundred steps of 1e-4 from 1: bf16 has nothing between 1 - 1/256 and 1."""
    ends = {}
    for stochastic in (False, True):
        weights = torch.ones(20_000, dtype=BF16)
        optimizer = adam(weights, stochastic=stochastic)
        for _ in range(100):
            weights.grad = torch.full_like(weights, 0.5)
            optimizer.step()
        ends[stochastic] = weights.float()
    assert torch.equal(ends[False], torch.ones(20_000))
    assert float(ends[True].mean()) == pytest.approx(1 - 100 * 1e-4, rel=1e-3)


@pytest.mark.parametrize("decoupled", [True, False], ids=["AdamW", "Adam"])
def test_a_step_is_that_of_torch_in_fp32_rounded(decoupled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sft_trainer.bf16adam._PIECE", 7)  # several pieces
    start = torch.randn(5, 6, generator=torch.Generator().manual_seed(0)).to(BF16)
    weights, plain = start.clone(), start.float()
    kind = torch.optim.AdamW if decoupled else torch.optim.Adam
    theirs = kind([plain], lr=1e-2, betas=(0.9, 0.98), eps=1e-8, weight_decay=0.1)
    ours = adam(weights, stochastic=False, rate=1e-2, decay=0.1)
    ours.decoupled = decoupled
    gradients = torch.Generator().manual_seed(4)
    for _ in range(5):
        gradient = torch.randn(5, 6, generator=gradients).to(BF16)
        weights.grad, plain.grad = gradient.clone(), gradient.float()
        plain.data.copy_(weights.float())  # so that rounding does not add up
        ours.step()
        theirs.step()
        assert torch.equal(weights, plain.to(BF16))
    for key in ("exp_avg", "exp_avg_sq"):
        assert ours.state[weights][key].dtype == torch.float32


def test_a_saved_optimizer_goes_on_to_the_bit() -> None:
    def trained(steps: int, weights: torch.Tensor, optimizer: BF16Adam) -> None:
        for _ in range(steps):
            weights.grad = weights * 0.1 + 1
            optimizer.step()

    whole = torch.ones(5_000, dtype=BF16)
    trained(10, whole, adam(whole, stochastic=True))
    first = torch.ones(5_000, dtype=BF16)
    saved = adam(first, stochastic=True)
    trained(4, first, saved)
    second = first.clone()
    resumed = adam(second, stochastic=True)
    resumed.load_state_dict(saved.state_dict())
    trained(6, second, resumed)
    assert torch.equal(whole, second)


# --------------------------------------------------------------------------- real ranks

MASTERS = ("FP32", "BF16StochasticRounding", "BF16")


def curves(world: World, volume: str, repeat: int) -> dict[str, Any]:
    """Losses of training the tiny model in bf16, by master weights and stage, and the optimizer's bytes."""
    engines.prepare("cpu")
    found = {}
    for masters, stage in ((MASTERS[0], 2), (MASTERS[1], 2), (MASTERS[1], 3), (MASTERS[2], 3)):
        changes = gradient_cells.SETTINGS | {
            "training__precision": "bf16",
            "training__masterWeights": masters,
            "training__microBatchSize": 8,
            "deepspeed__zeroStage": stage,
        }
        config = TrainConfig.model_validate(gang.Job(Path(volume), changes=changes).config())
        parts = gradient_cells.parts_of(config, world, Path(volume), packed=True, precision="bf16")
        losses = []
        for step in (0, 1) * repeat:
            own = loop.applied_step(parts, step, 1e-3, functools.partial(gradient_cells.batches, parts))
            total, count = world.sum([own.loss_sum, own.weight])
            losses.append(total / count)
        (flat, state), *_ = parts.engine.optimizer.optimizer.state.items()
        types = sorted({str(flat.dtype), str(state["exp_avg"].dtype)})
        found[f"{masters} {stage}"] = {"losses": losses, "types": types}
        parts.engine.destroy()
    return found


@processes
def test_the_tiny_model_learns_as_with_fp32_masters(tmp_path: Path) -> None:
    gang.Job(tmp_path)
    made = gang.call(curves, 2, volume=str(tmp_path), repeat=20)
    plain = made.pop("FP32 2")
    assert plain["types"] == ["torch.float32"]
    assert plain["losses"][-1] < plain["losses"][0] - 1, "nothing was learned"
    for name, other in made.items():
        assert other["types"] == ["torch.bfloat16", "torch.float32"], name
        assert other["losses"][0] == pytest.approx(plain["losses"][0], rel=1e-6), name
    for stage in (2, 3):
        losses = made[f"{MASTERS[1]} {stage}"]["losses"]
        assert losses[-1] == pytest.approx(plain["losses"][-1], rel=0.05), stage


CHANGES: dict[str, Any] = {
    "training__precision": "bf16",
    "training__masterWeights": "BF16StochasticRounding",
    "training__maxSteps": 6,
    "training__learningRate": 1e-4,
    "checkpoint__periodSteps": 3,
    "evaluation__periodSteps": None,
}


@processes
@pytest.mark.parametrize("stage", [2, pytest.param(3, marks=pytest.mark.soak)])
def test_a_resumed_training_is_the_same_to_the_bit(stage: int, tmp_path: Path) -> None:
    changes = CHANGES | {"deepspeed__zeroStage": stage}
    whole = gang.Job(tmp_path / "whole", changes=changes)
    resumed = gang.Job(tmp_path / "resumed", changes=changes)
    ended = whole.run()
    assert ended.codes == [0, 0], ended.output
    assert resumed.run().codes == [0, 0]
    next((resumed.folder / "checkpoints" / "step-6").rglob("*model_states.pt")).unlink()
    again = resumed.run(attempt=2)
    assert again.outcomes[0].resumed_from_step == 3, again.output  # type: ignore[union-attr]
    assert resumed.curve() == whole.curve()
    other = resumed.run(attempt=3, training__masterWeights="FP32")
    assert other.outcomes[0].reason == "OptimizerChanged"  # type: ignore[union-attr]


@processes
@pytest.mark.soak
def test_another_number_of_ranks_goes_on_at_another_stage(tmp_path: Path) -> None:
    whole = gang.Job(tmp_path / "whole", changes=CHANGES)
    assert whole.run().codes == [0, 0]
    assert gang.Job(tmp_path / "other", changes=CHANGES).run().codes == [0, 0]
    next((tmp_path / "other").rglob("step-6/**/*model_states.pt")).unlink()
    more = {"deepspeed__zeroStage": 3, "training__gradientAccumulationSteps": 4}
    alone = gang.Job(tmp_path / "other", 1, CHANGES | more)
    ended = alone.run(attempt=2)
    assert ended.codes == [0], ended.output
    assert ended.outcomes[0].resumed_from_step == 3  # type: ignore[union-attr]
    assert alone.curve() == pytest.approx(whole.curve(), rel=1e-3)
