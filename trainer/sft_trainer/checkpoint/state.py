"""What a checkpoint holds beside DeepSpeed's tensors: where the training stood, and the random generators.

DeepSpeed's own files carry no data position and no generator state; without them a resumed run is another
run.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError

from sft_trainer.config import Precision, Report
from sft_trainer.history import History

STATE = "trainer_state.json"
STATE_VERSION = 1  # raised when an older trainer could no longer continue from it


class TrainerState(Report):
    """Where a training stands after `step` optimizer steps. Batches and learning rate follow from it."""

    schema_version: int = STATE_VERSION
    step: int
    total_steps: int
    epoch: float
    consumed_sequences: int
    seed: int
    global_batch_size: int
    batches: str  # digest of the plan: which rows every step reads
    uid: str
    identity: str
    attempt: int
    run_id: str
    world_size: int
    zero_stage: int
    tensor_ranks: int = 1  # which share layers
    precision: Precision
    optimizer: str = "Adam"  # sft_trainer.optimizers.family
    packed: bool
    learning_rate: float
    loss: float | None
    history: History = History()
    seconds_since_evaluation: float = 0.0
    time: str  # RFC 3339


def read(directory: Path) -> TrainerState | None:
    """The state in a checkpoint; None when it is missing or no state. OSError for a volume that fails."""
    try:
        return TrainerState.model_validate_json((directory / STATE).read_bytes())
    except (FileNotFoundError, ValidationError):
        return None


def _random_path(directory: Path, rank: int) -> Path:
    return directory / f"rng-{rank}.pt"


def save_random(directory: Path, rank: int) -> None:
    """Write the state of every random generator of this rank."""
    version, numbers, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    state: dict[str, Any] = {
        "python": (version, numbers, gauss),
        "numpy": (name, torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, cached),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    torch.save(state, _random_path(directory, rank))


def load_random(directory: Path, rank: int) -> None:
    """Continue the random generators of this rank where `save_random` left them."""
    state = torch.load(_random_path(directory, rank), weights_only=True)
    random.setstate(state["python"])
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def seed_random(seed: int, step: int, rank: int) -> None:
    """Start the random generators of `rank` at `step` of a training whose number of ranks has changed."""
    numbers = [int(number) for number in np.random.SeedSequence((seed, step, rank)).generate_state(3)]
    random.seed(numbers[0])
    np.random.seed(numbers[1])
    torch.manual_seed(numbers[2])
