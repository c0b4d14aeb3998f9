"""One process of a gang computes two optimizer steps in every combination asked for; see test_gradients."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

import gang
from sft_trainer import attention, head, loop, model, sequence_parallel, upcast
from sft_trainer import engine as engines
from sft_trainer import precision as precisions
from sft_trainer.assemble import training_plan
from sft_trainer.batches import MicroBatch
from sft_trainer.collate import IGNORED, Batch, collate
from sft_trainer.config import Precision, TrainConfig
from sft_trainer.data.cache import TokenCache
from sft_trainer.distributed import World
from token_rows import Tokens


def workspace(root: Path) -> Path:
    """A tiny model, and rows of which some have weights and some nothing supervised."""
    ids = [np.full(MAX_LENGTH, index, np.int32) for index in range(8)]
    rows = _weighted(gang.token_rows(120, seed=1, longest=40))
    gang.write_cache(root / "cache", [*(Tokens(each, ()) for each in ids), *rows], [])
    gang.Job(root)
    return root


def _weighted(rows: list[Tokens]) -> list[Tokens]:
    """Every third row counts more or less than the others."""
    chosen = [row.spans and index % 3 == 0 for index, row in enumerate(rows)]
    return [
        replace(row, weights=(0.25 + index % 4,)) if weigh else row
        for index, (row, weigh) in enumerate(zip(rows, chosen, strict=True))
    ]


def two_steps(
    world: World, volume: str, cells: list[dict[str, Any]], repeat: int = 1
) -> list[dict[str, Any]]:
    """Gradient norm and loss of the last full and of the partial window, for each cell, `repeat` times."""
    engines.prepare("cpu")
    results = []
    for cell in cells:
        shared, tensor = cell.get("shared", 1), cell.get("tensor", 1)
        changes = {
            "deepspeed__zeroStage": cell["stage"],
            "deepspeed__sequenceParallelSize": shared,
            "deepspeed__tensorParallelSize": tensor,
            "training__gradientAccumulationSteps": cell["accumulation"],
            "training__microBatchSize": -(
                -GLOBAL_BATCH * shared * tensor // world.size // cell["accumulation"]
            ),
            **method(cell["method"]),
            "deepspeed__activationCheckpointing": cell.get("checkpointing", "None"),
            "deepspeed__offloadOptimizer": cell.get("optimizer", "None"),
            "deepspeed__offloadParameters": cell.get("parameters", "None"),
            "deepspeed__config": {"zero_optimization": {"zero_hpz_partition_size": size}}
            if (size := cell.get("secondary"))
            else {},
            "training__loss": {"labelSmoothing": cell.get("smoothing", 0.0)},
        }
        job = gang.Job(Path(volume), ranks=world.size, changes=SETTINGS | changes)
        config = TrainConfig.model_validate(job.config())
        chosen = cell.get("precision", "fp32")
        parts = parts_of(config, world, Path(volume), packed=cell["packed"], precision=chosen)
        assert parts.plan.total_steps == len(STEPS)
        norms, losses, empty = [], [], False
        for step in STEPS * repeat:
            empty |= _has_empty_batch(parts, step)
            own = loop.optimizer_step(parts, batches(parts, step), 1e-3)
            total, count = world.sum([own.loss_sum, own.weight])
            norms.append(own.norm)
            losses.append(total / count)
        seen = {"norms": norms, "losses": losses, "empty": empty, "compiler": _COMPILER in sys.modules}
        results.append({**cell, "ranks": world.size, **seen})
        parts.engine.destroy()
    return results


def batches(parts: loop.Parts, step: int) -> list[Batch]:
    """This rank's micro-batches of `step`."""
    made = parts.plan.micro_batches(step, parts.world.rank)
    return [collate(micro, parts.rows, parts.world.device, packed=parts.plan.packed) for micro in made]


def _has_empty_batch(parts: loop.Parts, step: int) -> bool:
    """Whether some rank has a micro-batch with rows, but without a supervised token."""
    rows = parts.rows
    return any(
        micro.packs and not any(rows.row(row)[1][1:].any() for pack in micro.packs for row in pack)
        for rank in range(parts.world.size)
        for micro in parts.plan.micro_batches(step, rank)
    )


def method(name: str) -> dict[str, Any]:
    """Train all weights (`Full`), or adapters alone: LoRA or one of its variants."""
    lora = {"rank": 4, "alpha": 8, "dropout": 0.0, "targetModules": ["AllLinear"], "variant": name}
    full = name == "Full"
    return {"training__method": "Full" if full else "LoRA", "training__lora": None if full else lora}


_COMPILER = "torch._inductor.compile_fx"
GLOBAL_BATCH = 32  # with accumulation 3, the micro-batches of a window differ in size
MAX_LENGTH = 64
SETTINGS = {
    "data__maxLength": MAX_LENGTH,
    "training__globalBatchSize": GLOBAL_BATCH,
    "training__maxSteps": None,
    "training__epochs": 1,
    "training__maxGradNorm": 0.5,
    "training__optimizer": {"type": "AdamW", "betas": [0.9, 0.98], "eps": 1e-3, "weightDecay": 0.0},
}
STEPS = (0, 1)  # a full window, and then one with the packs that are left


def parts_of(
    config: TrainConfig, world: World, volume: Path, *, packed: bool, precision: Precision = "fp32"
) -> Any:
    """What the loop needs of an engine and rows; nothing is written or reported."""
    rows = TokenCache(volume / config.data.cache).train
    settings = engines.deepspeed_config(config, precision)
    offloaded = config.deepspeed.offload_parameters == "CPU"
    network = model.load(
        volume / config.model.directory,
        dtype=precisions.dtype(precision),
        adapters=config.training.lora,
        activation_checkpointing=config.deepspeed.activation_checkpointing,
        zero3=settings if config.deepspeed.zero_stage == 3 and (world.size > 1 or offloaded) else None,
        seed=0,
    )
    engine = engines.initialize(network, config, settings)
    assert head.install(engine.module)
    upcast.enable(network)
    assert not packed or attention.use_per_document(engine.module)
    if (group := sequence_parallel.join(config.deepspeed.sequence_parallel_size)) is not None:
        sequence_parallel.use(engine.module, group)
    plan = training_plan(config, rows.lengths, packed=packed)
    return loop.Parts(
        config=config,
        world=world,
        engine=engine,
        rows=rows,
        plan=plan,
        held_out=None,
        store=None,  # type: ignore[arg-type]
        reporter=None,  # type: ignore[arg-type]
        stop=None,  # type: ignore[arg-type]
        precision=precision,
        checkpoint_bytes=0,
    )


def reference(
    volume: Path,
    trained: str = "Full",
    smoothing: float = 0.0,
    steps: tuple[int, ...] = STEPS,
    make: Callable[[Any], Any] | None = None,
) -> dict[str, list[float]]:
    """The same steps in one process with plain torch: every row alone, one full batch, no DeepSpeed.

    `make` builds another optimizer than AdamW for a network.
    """
    config = TrainConfig.model_validate(gang.Job(volume, 1, SETTINGS | method(trained)).config())
    rows = TokenCache(volume / config.data.cache).train
    network = model.load(
        volume / config.model.directory,
        dtype=torch.float32,
        adapters=config.training.lora,
        activation_checkpointing="None",
        zero3=None,
        seed=0,
    )
    chosen = config.training.optimizer
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimizer: Any = torch.optim.AdamW(
        parameters, lr=1e-3, betas=chosen.betas, eps=chosen.eps, weight_decay=0.0
    )
    if make is not None:
        optimizer = make(network)
    plan = training_plan(config, rows.lengths, packed=True)
    norms, losses = [], []
    for step in steps:
        total, plain, count = torch.zeros(()), 0.0, 0.0
        for row in (row for pack in plan.sequences(step) for row in pack):
            batch = collate(MicroBatch([[row]]), rows, torch.device("cpu"), packed=False)
            logits = network(input_ids=batch.input_ids, use_cache=False).logits[0]
            each, unsmoothed = (
                torch.nn.functional.cross_entropy(
                    logits, batch.targets[0], ignore_index=IGNORED, reduction="none", label_smoothing=amount
                )
                for amount in (smoothing, 0.0)
            )
            weights = torch.from_numpy(np.append(rows.row(row)[1][1:], np.float32(0)))
            total = total + (each * weights).sum()
            plain += float((unsmoothed.detach() * weights).sum())
            count += float(weights.sum())
        optimizer.zero_grad()
        (total / count).backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(parameters, config.training.max_grad_norm)))
        losses.append(plain / count)
        optimizer.step()
    return {"norms": norms, "losses": losses}
