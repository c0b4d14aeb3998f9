"""Does this model really do what is taken for granted of models? Asked at every start, with rows of its own data.

transformers isolates packed documents by position ids for most architectures, silently fails to for some, and may
change which. Most heads are one matrix product, some scale or cap what comes out of it.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch

from sft_trainer import attention, flash, head, sequence_parallel
from sft_trainer.collate import IGNORED, Batch, Rows
from sft_trainer.config import Attention
from sft_trainer.distributed import World
from sft_trainer.engine import Engine
from sft_trainer.errors import UserError
from sft_trainer.flashkernels import Found
from sft_trainer.loss import supervised_loss

logger = logging.getLogger(__name__)

Find = Callable[[Any, torch.dtype, torch.device], Found]

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


class Chosen(NamedTuple):
    """The attention in use, by its name in the API, and whether documents share sequences."""

    attention: Attention
    packed: bool


def use_attention(
    engine: Engine,
    rows: Rows,
    world: World,
    wanted: Attention | None = None,
    *,
    pack: bool = True,
    find: Find = flash.find,
) -> Chosen:
    """Leave in use the first attention that is allowed, possible and right, with packs or without. Collective.

    Right means that logits of two documents which share a pass equal those of each alone, on every rank. Allowed are
    the `wanted` one, or all: FlashAttention, on GPUs; SDPA for each document on its own; what the library does itself.

    Raises:
        UserError: FlashAttention is `wanted`, and is not possible or not right.
    """
    whole, half = (np.asarray(rows.row(i % len(rows.lengths))[0][:_LENGTH], np.int64) for i in (0, 1))
    documents = [whole, half[: max(2, len(half) // 2)]]  # not as long as one another
    engine.eval()
    with torch.no_grad():
        chosen = _first_right(engine, documents, world, wanted, pack, find)
    engine.train()
    if world.is_first:
        logger.info("attention: %s, rows are %s", chosen.attention, "packed" if chosen.packed else "padded")
    return chosen


def _first_right(
    engine: Engine,
    documents: list[np.ndarray],
    world: World,
    wanted: Attention | None,
    pack: bool,
    find: Find,
) -> Chosen:
    library = attention.implementation(engine.module)
    apart = torch.cat([_packed(engine, [document], world) for document in documents])
    for name, words in _ours(engine.module, world, wanted, find):
        try:
            together = _packed(engine, documents, world) if pack else _padded(engine, documents, world)
        except (RuntimeError, TypeError, ValueError) as error:
            logger.warning("%s failed: %s", words, error)
            together = torch.full_like(apart, torch.nan)
        if _agree(together, apart, world, words):
            return Chosen(name, pack)
        attention.use(engine.module, library or "eager")
    if wanted == "FlashAttention":
        raise _not_possible("documents would see each other with it")
    if not pack or _agree(_packed(engine, documents, world), apart, world, "the library's attention"):
        return Chosen("Eager" if library == "eager" else "SDPA", pack)
    if world.is_first:
        logger.warning(
            "packing is turned off: this model mixes documents that share a sequence; "
            "training goes on with padded rows, slower but right"
        )
    return _first_right(engine, documents, world, wanted, False, find)


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
        apart = torch.cat([_packed(engine, [document], world) for document in documents])
        sequence_parallel.use(engine.module, group)
        logits = engine(input_ids=own, position_ids=at, use_cache=False).logits[0]
    engine.train()
    expected = apart[world.rank % group.size * len(logits) :][: len(logits)]
    if len(expected) == 0:  # this rank has padding only
        expected = logits
    if not _agree(logits[: len(expected)], expected, world, f"sequences split over {group.size} ranks"):
        raise sequence_parallel.unsupported("its logits are others than those of whole documents")


def _ours(model: Any, world: World, wanted: Attention | None, find: Find) -> Iterator[tuple[Attention, str]]:
    """Attentions of ours that `model` can have, each put to use as it is named."""
    if wanted in (None, "FlashAttention"):
        kernel, words = find(model, next(model.parameters()).dtype, world.device)
        if world.sum([float(kernel is None)])[0] == 0 and kernel is not None:
            flash.install(model, kernel)
            yield "FlashAttention", f"FlashAttention ({words})"
        else:
            why = "another rank cannot compute it" if kernel is not None else words
            if wanted == "FlashAttention":
                raise _not_possible(why)
            if world.is_first and world.device.type != "cpu":
                logger.info("no FlashAttention: %s", why)
    if wanted in (None, "SDPA") and attention.use_per_document(model):
        yield "SDPA", "each document's attention on its own"


def _not_possible(why: str) -> UserError:
    return UserError(
        "AttentionUnsupported",
        f"model.attention is FlashAttention, but {why}: set it to SDPA, or remove it to have it chosen",
    )


def _agree(together: torch.Tensor, apart: torch.Tensor, world: World, how: str) -> bool:
    """Whether these logits are equal on every rank, but for rounding in the model's type."""
    difference = float(
        (together.float() - apart.float()).abs().max() / apart.float().abs().max().clamp(min=1e-6)
    )
    wrong = not difference <= _TOLERANCE.get(together.dtype, 5e-2)
    safe = world.sum([float(wrong)])[0] == 0
    if world.is_first:
        verdict = "passed: documents do not see each other" if safe else "failed"
        logger.info("self-check of %s %s (%.1e)", how, verdict, difference)
    return safe


def _packed(engine: Engine, documents: list[np.ndarray], world: World) -> torch.Tensor:
    """Logits [tokens, vocabulary] of documents that share one sequence, in the model's type."""
    ids = torch.from_numpy(np.concatenate(documents))[None].to(world.device)
    positions = torch.from_numpy(np.concatenate([np.arange(len(d)) for d in documents]))[None]
    logits: torch.Tensor = engine(
        input_ids=ids, position_ids=positions.to(world.device), use_cache=False
    ).logits
    return logits[0]


def _padded(engine: Engine, documents: list[np.ndarray], world: World) -> torch.Tensor:
    """The same of documents that are rows of their own, padded to the longest."""
    longest = max(len(document) for document in documents)
    ids = np.stack([np.pad(document, (0, longest - len(document))) for document in documents])
    real = torch.from_numpy(np.stack([np.arange(longest) < len(document) for document in documents]))
    logits: torch.Tensor = engine(
        input_ids=torch.from_numpy(ids).to(world.device),
        attention_mask=real.to(world.device, torch.int64),
        use_cache=False,
    ).logits
    return logits[real.to(world.device)]
