"""Loads a checkpoint into as many ranks as wrote it, by DeepSpeed's own means: each loads what one of its number saved.

The files are mapped, not read: what goes to a GPU takes no memory of the pod.
"""

from __future__ import annotations

import functools
from pathlib import Path

import torch

from sft_trainer.checkpoint.commit import ENGINE_TAG
from sft_trainer.engine import Engine
from sft_trainer.errors import Crash


def load(engine: Engine, directory: Path) -> None:
    """Put weights and optimizer where the checkpoint in `directory` left them. Collective.

    Raises:
        Crash: DeepSpeed finds nothing there.
    """
    partial = any(not p.requires_grad for p in engine.module.parameters())
    configured = [dict(group) for group in engine.optimizer.param_groups]
    engine.checkpoint_engine.load = functools.partial(torch.load, mmap=True, weights_only=False)
    inner = getattr(engine.optimizer, "optimizer", engine.optimizer)
    copying = inner.register_load_state_dict_post_hook(_own)
    try:
        path, _ = engine.load_checkpoint(
            str(directory), tag=ENGINE_TAG, load_module_strict=not partial, load_lr_scheduler_states=False
        )
    finally:
        copying.remove()
    if path is None:
        raise Crash(f"DeepSpeed could not load checkpoint {directory.name}", "CheckpointNotLoadable")
    # With the state come the settings of the run that saved it; those of this run count, as with other ranks.
    for group, mine in zip(engine.optimizer.param_groups, configured, strict=True):
        group.update({name: value for name, value in mine.items() if name not in ("params", "step")})


def _own(inner: torch.optim.Optimizer) -> None:
    """On a CPU an optimizer takes loaded tensors for its own: those in a file, which is pruned one day, are copied."""
    for own in inner.state.values():
        for key, value in own.items():
            if torch.is_tensor(value) and value.device.type == "cpu":
                own[key] = value.clone()
