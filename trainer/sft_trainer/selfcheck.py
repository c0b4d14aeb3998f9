"""Does this model really do what is taken for granted of models? Asked at every start, with rows of its own data.

transformers isolates packed documents by position ids for most architectures, silently fails to for some, and may
change which. Most heads are one matrix product, some scale or cap what comes out of it.
"""

from __future__ import annotations

import logging
import math

import numpy as np
import torch

from sft_trainer import attention, head, sequence_parallel
from sft_trainer.collate import IGNORED, Batch, Rows
from sft_trainer.distributed import World
from sft_trainer.engine import Engine
from sft_trainer.loss import supervised_loss

logger = logging.getLogger(__name__)

_LENGTH = 32  # tokens of each document
# Largest allowed difference, relative to the largest logit. Contamination measures 0.3 and more.
_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 5e-2}
_LOSS_TOLERANCE = 1e-3  # relative; the logits are the same, only summed in other pieces


def use_loss_head(engine: Engine, rows: Rows, world: World) -> bool:
    """Let the output layer itself compute the loss, where that equals the loss of the logits. Collective.

    It does not where a model changes its logits afterwards (scaling, soft-capping).
    """
    ids = torch.from_numpy(np.asarray(rows.row(0)[0][:_LENGTH], np.int64))[None].to(world.device)
    targets = torch.full_like(ids, IGNORED)
    targets[:, :-1] = ids[:, 1:]
    count = ids.shape[1] - 1
    batch = Batch(ids, targets, None, None, tokens=count, padding=0, supervised=count)
    engine.eval()
    with torch.no_grad():
        expected = float(supervised_loss(engine, batch))
        equal = head.install(engine)
        if equal:
            close = math.isclose(float(supervised_loss(engine, batch)), expected, rel_tol=_LOSS_TOLERANCE)
            equal = world.sum([not close])[0] == 0
    engine.train()
    if not equal:
        head.uninstall(engine)
    if world.is_first:
        logger.info(
            "loss %s", "by chunks of positions" if equal else "from the logits: this head is not plain"
        )
    return equal


def packing_is_safe(engine: Engine, rows: Rows, world: World) -> bool:
    """Whether logits of two documents packed equal those of each alone, on every rank. Collective.

    The attention of each document on its own is tried first, and left in use where it passes.
    """
    documents = [np.asarray(rows.row(i % len(rows.lengths))[0][:_LENGTH], np.int64) for i in (0, 1)]
    engine.eval()
    with torch.no_grad():
        apart = torch.cat([_logits(engine, [document], world) for document in documents])
        safe = False
        if attention.use_per_document(engine.module):
            safe = _agree(
                _logits(engine, documents, world), apart, world, "each document's attention on its own"
            )
            if not safe:
                attention.use_masked(engine.module)
        safe = safe or _agree(_logits(engine, documents, world), apart, world, "the library's attention")
    engine.train()
    if world.is_first and not safe:
        logger.warning(
            "packing is turned off: this model mixes documents that share a sequence; "
            "training goes on with padded rows, slower but right"
        )
    return safe


def require_exact_split(engine: Engine, rows: Rows, world: World, group: sequence_parallel.Group) -> None:
    """Attend over sequences of which each rank of `group` has a part, from now on. Collective.

    Raises:
        UserError: the model's attention cannot, or its logits are then not those of each document alone.
    """
    sizes = (_LENGTH, _LENGTH // 2)  # not even, so that a document goes on at the next rank
    documents = [
        np.asarray(rows.row(i % len(rows.lengths))[0][:size], np.int64) for i, size in enumerate(sizes)
    ]
    total = sum(len(document) for document in documents)
    padding = np.arange(-total % group.size)
    ids = torch.from_numpy(np.concatenate([*documents, padding * 0]))[None].to(world.device)
    positions = torch.from_numpy(np.concatenate([*(np.arange(len(d)) for d in documents), padding]))[None]
    own, at = (sequence_parallel.own_part(each.to(world.device), group) for each in (ids, positions))
    engine.eval()
    with torch.no_grad():
        apart = torch.cat([_logits(engine, [document], world) for document in documents])
        sequence_parallel.use(engine.module, group)
        logits = engine(input_ids=own, position_ids=at, use_cache=False).logits[0]
    engine.train()
    expected = apart[world.rank % group.size * len(logits) :][: len(logits)]
    if len(expected) == 0:  # this rank has padding only
        expected = logits
    if not _agree(logits[: len(expected)], expected, world, f"sequences split over {group.size} ranks"):
        raise sequence_parallel.unsupported("its logits are others than those of whole documents")


def _agree(packed: torch.Tensor, apart: torch.Tensor, world: World, how: str) -> bool:
    """Whether these logits are equal on every rank, but for rounding in the model's type."""
    difference = float(
        (packed.float() - apart.float()).abs().max() / apart.float().abs().max().clamp(min=1e-6)
    )
    wrong = not difference <= _TOLERANCE.get(packed.dtype, 5e-2)
    safe = world.sum([float(wrong)])[0] == 0
    if world.is_first:
        verdict = "passed: documents do not see each other" if safe else "failed"
        logger.info("packing self-check with %s %s (%.1e)", how, verdict, difference)
    return safe


def _logits(engine: Engine, documents: list[np.ndarray], world: World) -> torch.Tensor:
    """Logits [tokens, vocabulary] of documents that share one sequence, in the model's type."""
    ids = torch.from_numpy(np.concatenate(documents))[None].to(world.device)
    positions = torch.from_numpy(np.concatenate([np.arange(len(d)) for d in documents]))[None]
    logits: torch.Tensor = engine(
        input_ids=ids, position_ids=positions.to(world.device), use_cache=False
    ).logits
    return logits[0]
