"""Muon on hidden matrices and AdamW on the rest: as plain torch does it, on one rank and on two, and resumed to the bit."""

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import gang
import gradient_cells
import tiny
from sft_trainer import engine as engines
from sft_trainer import loop, parameters
from sft_trainer.config import ParameterGroup, TrainConfig
from sft_trainer.distributed import World
from sft_trainer.muon import Muon

RATE = 1e-3  # of loop.optimizer_step below, and in gradient_cells.reference
MUON = {"type": "Muon", "betas": [0.9, 0.98], "eps": 1e-3, "weightDecay": 0.0, "momentum": 0.9}
STEPS = (0, 1) * 3


def ours(model: Any, groups: Any) -> Muon:
    return Muon(model, groups, lr=RATE, momentum=0.9, betas=(0.9, 0.98), eps=1e-3, weight_decay=0.1)


def test_embeddings_head_and_norms_are_left_to_adamw(tmp_path: Path) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(str(tiny.model(tmp_path / "tiny")))
    slow = [ParameterGroup(pattern="model.layers.0.*", learning_rate_factor=0.5)]
    optimizer = ours(model, parameters.groups(model, slow, 0.1))
    names = {id(p): name for name, p in model.named_parameters()}
    found = {}
    for group in optimizer.param_groups:
        key = (group["hidden"], group["learning_rate_factor"], group["weight_decay"])
        found[key] = sorted(names[id(p)] for p in group["params"])
    assert sorted(found) == [
        (False, 0.5, 0.0),
        (False, 1.0, 0.0),
        (False, 1.0, 0.1),
        (True, 0.5, 0.1),
        (True, 1.0, 0.1),
    ]
    assert found[False, 1.0, 0.1] == ["model.embed_tokens.weight"]
    assert len(found[True, 0.5, 0.1]) == len(found[True, 1.0, 0.1]) == 7


class Plain:
    """The same with torch's two optimizers side by side."""

    def __init__(self, network: Any) -> None:
        named = [(name, p) for name, p in network.named_parameters() if p.requires_grad]
        hidden = [p for name, p in named if ".layers." in name and p.ndim == 2]
        other = [p for name, p in named if not (".layers." in name and p.ndim == 2)]
        self.both = [
            torch.optim.Muon(hidden, lr=RATE, momentum=0.9, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(other, lr=RATE, betas=(0.9, 0.98), eps=1e-3, weight_decay=0.0),
        ]

    def zero_grad(self) -> None:
        for each in self.both:
            each.zero_grad()

    def step(self) -> None:
        for each in self.both:
            each.step()


def steps(world: World, volume: str, precisions: list[Any]) -> dict[str, Any]:
    engines.prepare("cpu")
    found = {}
    for precision in precisions:
        changes = gradient_cells.SETTINGS | {
            "deepspeed__zeroStage": 0,
            "training__microBatchSize": 8,
            "training__gradientAccumulationSteps": 4 // world.size,
            "training__optimizer": MUON,
        }
        job = gang.Job(Path(volume), ranks=world.size, changes=changes)
        config = TrainConfig.model_validate(job.config())
        parts = gradient_cells.parts_of(config, world, Path(volume), packed=True, precision=precision)
        inner = getattr(parts.engine.optimizer, "optimizer", parts.engine.optimizer)
        taken = len(inner.state)
        norms, losses = [], []
        for step in STEPS:
            own = loop.applied_step(parts, step, RATE, functools.partial(gradient_cells.batches, parts))
            total, count = world.sum([own.loss_sum, own.weight])
            norms.append(own.norm)
            losses.append(total / count)
        found[precision] = {"norms": norms, "losses": losses, "taken": taken}
        parts.engine.destroy()
    return found


@pytest.mark.processes
def test_norm_and_loss_of_every_step_are_those_of_plain_torch(tmp_path: Path) -> None:
    gang.Job(tmp_path)
    plain = gradient_cells.reference(tmp_path, steps=STEPS, make=Plain)
    adamw = gradient_cells.reference(tmp_path, steps=STEPS)
    assert abs(plain["losses"][-1] / adamw["losses"][-1] - 1) > 1e-3, "it is not another optimizer"
    for ranks in (1, 2):
        made = gang.call(steps, ranks, volume=str(tmp_path), precisions=["fp32", "bf16"])
        assert made["fp32"]["losses"] == pytest.approx(plain["losses"], rel=1e-4), ranks
        assert made["fp32"]["norms"] == pytest.approx(plain["norms"], rel=2e-3), (
            ranks
        )  # steps are bf16 products
        assert made["bf16"]["losses"] == pytest.approx(plain["losses"], rel=1e-2), ranks
        assert [made[each]["taken"] for each in ("fp32", "bf16")] == [0, 0], (
            "DeepSpeed has taken a step of its own"
        )


@pytest.mark.processes
@pytest.mark.parametrize("precision", ["bf16", pytest.param("fp32", marks=pytest.mark.soak)])
def test_a_resumed_training_is_the_same_to_the_bit(precision: str, tmp_path: Path) -> None:
    changes = {
        "training__optimizer": MUON,
        "training__precision": precision,
        "training__maxSteps": 4,
        "deepspeed__zeroStage": 0,
        "checkpoint__periodSteps": 2,
        "evaluation__periodSteps": None,
    }
    whole, resumed = (gang.Job(tmp_path / name, changes=changes) for name in ("whole", "resumed"))
    ended = whole.run()
    assert ended.codes == [0, 0], ended.output
    assert resumed.run().codes == [0, 0]
    next((resumed.folder / "checkpoints" / "step-4").rglob("*model_states.pt")).unlink()
    again = resumed.run(attempt=2)
    assert again.outcomes[0].resumed_from_step == 2, again.output  # type: ignore[union-attr]
    assert resumed.curve() == whole.curve()
