"""What adapters keep for the backward pass, counted tensor by tensor, is what the planner adds for them."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import tiny
from kept_bytes import kept
from sft_trainer import facts, lora
from sft_trainer.config import LoRA
from sftjob_operator.planning.memory import estimate
from sftjob_operator.planning.shape import Shape

TOKENS = 64
PLAIN = LoRA(rank=2, alpha=4, dropout=0.0, target_modules=["AllLinear"])


def kept_with(folder: Path, adapters: LoRA) -> int:
    """Bytes that a forward pass keeps."""
    torch.manual_seed(0)
    model = lora.add(transformers.AutoModelForCausalLM.from_pretrained(str(folder)), adapters)
    model.train()
    ids = torch.zeros(1, TOKENS, dtype=torch.long)
    return kept(model, lambda: model(input_ids=ids, use_cache=False))


def planned(folder: Path, *, dora: bool = False, dropout: bool = False) -> int:
    """Activations of the estimate; DoRA's whole weights of one layer, which nobody keeps, are taken off."""
    model = facts.model_facts(folder, "here", "here")
    shape = Shape(
        world_size=1,
        zero_stage=0,
        micro_batch_size=1,
        max_length=TOKENS,
        checkpointing="None",
        precision="fp32",
        accelerator="cpu",
        lora_rank=2,
        dora=dora,
        lora_dropout=dropout,
    )
    hidden, middle = model.hidden_size, model.intermediate_size
    return estimate(model, shape).activations - dora * 4 * (3 * hidden * middle + middle**2)


@pytest.mark.parametrize(
    ("changes", "shape"),
    [({"variant": "DoRA"}, {"dora": True}), ({"dropout": 0.5}, {"dropout": True})],
    ids=["DoRA", "dropout"],
)
def test_the_plan_adds_what_is_kept(changes: dict[str, Any], shape: dict[str, bool], tmp_path: Path) -> None:
    folder = tiny.model(tmp_path / "tiny", hidden=64, layers=4)
    measured = kept_with(folder, PLAIN.model_copy(update=changes)) - kept_with(folder, PLAIN)
    added = planned(folder, **shape) - planned(folder)
    assert measured <= 1.05 * added  # norms of rows, whatever the tokens
    assert (
        added <= 1.5 * measured
    )  # with dropout the adapter no longer keeps its input, which a layer may keep anyway
