"""Builds the parts of a run in order and runs them: the trainer's composition root."""

from __future__ import annotations

import importlib.metadata
import json
import logging
import time
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from deepspeed.accelerator import get_accelerator

from sft_trainer import attention as attentions
from sft_trainer import engine as engines
from sft_trainer import (
    flops,
    loop,
    model,
    neftune,
    parameters,
    peak,
    prebuilt,
    precision,
    reporters,
    sequence_parallel,
    upcast,
    uses,
)
from sft_trainer.baseline import evaluate_base
from sft_trainer.batches import Plan, one_row_each
from sft_trainer.checkpoint import fence, owner, resume
from sft_trainer.checkpoint.commit import Store
from sft_trainer.checkpoint.fence import Fence
from sft_trainer.checkpoint.files import write_atomically
from sft_trainer.checkpoint.owner import Owner
from sft_trainer.checkpoint.resume import Found
from sft_trainer.collate import Rows
from sft_trainer.config import MasterWeights, Precision, TrainConfig, TrainResult
from sft_trainer.data.cache import TokenCache
from sft_trainer.data.packing import pack
from sft_trainer.distributed import World, connect
from sft_trainer.evaluate import perplexity
from sft_trainer.export import export
from sft_trainer.history import History
from sft_trainer.layout import JobFolder, within, workspace
from sft_trainer.metrics import peak_memory_bytes
from sft_trainer.outcome import now
from sft_trainer.prefetch import Prefetch
from sft_trainer.reporting import Journal
from sft_trainer.selfcheck import require_exact_split, use_attention, use_loss_head
from sft_trainer.starting import Start
from sft_trainer.stopping import StopSignal

logger = logging.getLogger(__name__)

_LAST_WORDS_SECONDS = 10.0  # of trackers, at the end of a run


def run(config: TrainConfig, journal: Journal) -> TrainResult:
    """Train as `config` says, or continue; then evaluate and export. `journal` is kept up to date."""
    clock = Start()
    clock.lap("imports")
    stop = StopSignal()
    volume = workspace()
    folder = JobFolder.of(volume, config.job.name)
    world = connect(config.topology.accelerator)
    engines.prepare(config.topology.accelerator)
    clock.lap("rendezvous")
    mine, found = world.first(lambda: take_over(config, folder))
    clock.lap("resume")
    journal.checkpoints = resume.facts(folder.checkpoints)[-10:]
    parts = build(config, volume, folder, world, mine, found, stop, journal, clock)
    stop.defer(True)
    try:
        start, loss = (found.state.step, found.state.loss) if found else (0, None)
        if found is None:
            evaluate_base(parts)
            parts.looked_at = time.monotonic()
        with Prefetch(parts.rows, parts.plan, world, start) as ahead:
            ended = loop.train(parts, start, loss, ahead.take)
        stop.defer(False)
        result = finish(parts, volume, ended)
    finally:
        parts.reporter.close(_LAST_WORDS_SECONDS)
    torch.distributed.destroy_process_group()  # not after a failure: it would wait for ranks that are gone
    return result


def take_over(config: TrainConfig, folder: JobFolder) -> tuple[Fence, Found | None]:
    """Rank 0 only: make the job's folder this run's, and find what to continue.

    Raises:
        UserError: the folder holds the work of another job, of another ZeRO layout, or nothing whole.
        Fenced: a newer attempt owns it.
    """
    mine = Fence(uid=config.job.uid, attempt=config.attempt, started=now(), run_id=uuid.uuid4().hex[:12])
    me = Owner(uid=config.job.uid, identity=config.identity)
    action = owner.judge(folder, me, config.checkpoint.on_existing)
    fence.claim(folder.fence, mine)
    owner.take(folder, me, action, datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ"))
    resume.remove_staged(folder.checkpoints)
    found = resume.newest_whole(folder.checkpoints)
    if found is not None:
        resume.require_known_stage(found.state, config)
        resume.require_same_optimizer(found.state, config)
        resume.require_same_shares(found.state, config)
    return mine, found


def build(
    config: TrainConfig,
    volume: Path,
    folder: JobFolder,
    world: World,
    mine: Fence,
    found: Found | None,
    stop: StopSignal,
    journal: Journal,
    clock: Start,
) -> loop.Parts:
    """Load data and model, start the engine, check packing, resume. Collective."""
    chosen = agreed_precision(config, found, world)
    reporter = reporters.reporter(config, folder, world, mine, chosen, journal, clock)
    reporter.phase("Starting")
    uses.require(volume, (config.model.directory, config.data.cache))
    cache = TokenCache(within(volume, config.data.cache))
    settings = engines.deepspeed_config(config, chosen)
    prebuilt.require(settings, prebuilt.installed(get_accelerator().device_name()))
    world.first(lambda: write_atomically(folder.root / "deepspeed.json", json.dumps(settings, indent=2)))
    partitioned = config.deepspeed.zero_stage == 3 and (
        world.size > 1 or config.deepspeed.offload_parameters == "CPU"  # never whole on the GPU
    )
    network = model.load(
        within(volume, config.model.directory),
        dtype=precision.dtype(chosen),
        adapters=config.training.lora if config.training.adapts else None,
        added=config.model.added_tokens,
        quantised=config.training.method == "QLoRA",
        activation_checkpointing=config.deepspeed.activation_checkpointing,
        zero3=settings if partitioned else None,
        seed=config.training.seed,
        attention=config.model.attention,
    )
    world.barrier()  # one node may read the weights for longer than a computation waits for it
    parameters.freeze(network, config.training.parameter_groups)
    group = sequence_parallel.join(config.deepspeed.sequence_parallel_size)
    work = flops.work(network)
    clock.lap("weights")
    engine = engines.initialize(network, config, settings)
    shares = config.deepspeed.tensor_parallel_size
    every, trained = (own * shares for own in model.counts(network))
    expected = checkpoint_bytes(every, trained, chosen, config.training.master_weights)
    if config.training.neftune_alpha is not None:  # after the engine, which may replace embeddings
        neftune.install(network, config.training.neftune_alpha, group)
    use_loss_head(engine, cache.train, world)
    upcast.enable(network)  # after the loss head, which is made of a plain layer
    clock.lap("engine")
    # Rows whose sequences are shared are told apart as packed ones are.
    pack_rows = config.data.packing == "BestFit" or group is not None
    attention, packed = use_attention(engine, cache.train, world, config.model.attention, pack=pack_rows)
    if group is not None:
        require_exact_split(engine, cache.train, world, group)
    plan = training_plan(config, cache.train.lengths, packed=packed)
    clock.lap("self-check")
    # Ranks that share layers draw the same dropout and noise, as they compute on the same tokens.
    seed_everything(config.training.seed, world.rank // config.deepspeed.tensor_parallel_size)
    if found is not None:
        resume.require_same_batches(found.state, plan)
        resume.load(engine, found, world, config.deepspeed.tensor_parallel_size)
        if world.is_first:
            logger.info(
                "resumed from checkpoint step-%d of attempt %d%s",
                found.state.step,
                found.state.attempt,
                resume.other_size(found.state, world),
            )
    clock.lap("resume")
    reporter.started(
        plan.total_steps,
        found.state.step if found else None,
        chosen,
        importlib.metadata.version("deepspeed"),
        attention,
        peak.peak_flops(chosen),
    )
    return loop.Parts(
        config=config,
        world=world,
        engine=engine,
        rows=cache.train,
        plan=plan,
        held_out=_held_out(config, cache.eval, packed),
        store=Store(folder, mine, config.checkpoint.keep_last, config.checkpoint.keep_best),
        reporter=reporter,
        stop=stop,
        precision=chosen,
        checkpoint_bytes=found.size if found else expected,
        history=found.state.history if found else History(),
        looked_at=time.monotonic() - (found.state.seconds_since_evaluation if found else 0.0),
        work=work,
    )


def agreed_precision(config: TrainConfig, found: Found | None, world: World) -> Precision:
    """The same number format on every rank, whatever hardware each has. Collective."""
    accelerator = config.topology.accelerator
    return precision.resolve(
        config.training.precision,
        accelerator,
        formats=set.intersection(*world.gather(precision.native(accelerator))),
        zero_stage=config.deepspeed.zero_stage,
        saved=found.state.precision if found else None,
    )


def training_plan(config: TrainConfig, lengths: np.ndarray[Any, Any], *, packed: bool) -> Plan:
    """The batches of the whole training."""
    return Plan(
        lengths=lengths,
        max_length=config.data.max_length,
        packer=pack if config.data.packing == "BestFit" else one_row_each,
        global_batch=config.training.global_batch_size,
        micro_batch=config.training.micro_batch_size,
        world_size=config.topology.world_size,
        seed=config.training.seed,
        epochs=config.training.epochs,
        max_steps=config.training.max_steps,
        max_tokens=config.training.max_tokens,
        packed=packed,
        sequence_ranks=config.deepspeed.sequence_parallel_size,
        tensor_ranks=config.deepspeed.tensor_parallel_size,
    )


def _held_out(config: TrainConfig, rows: Rows | None, packed: bool) -> tuple[Rows, Plan] | None:
    if rows is None or len(rows.lengths) == 0:
        return None
    once = {"epochs": 1, "max_steps": None, "max_tokens": None}
    one_pass = config.model_copy(update={"training": config.training.model_copy(update=once)})
    return rows, training_plan(one_pass, np.asarray(rows.lengths), packed=packed)


def checkpoint_bytes(
    parameters: int, trainable: int, chosen: Precision, master_weights: MasterWeights
) -> int:
    """Expected size of a checkpoint: the module as it computes, master weights and two fp32 moments."""
    module = parameters if trainable == parameters else trainable
    return module * (4 if chosen == "fp32" else 2) + (12 if master_weights == "FP32" else 10) * trainable


def seed_everything(seed: int, rank: int) -> None:
    """Every rank draws its own dropout; batches do not depend on these generators."""
    import random

    random.seed(seed + rank)
    np.random.seed((seed + rank) % 2**32)
    torch.manual_seed(seed + rank)


def finish(parts: loop.Parts, volume: Path, ended: loop.Ended) -> TrainResult:
    """Evaluate what was not yet, export the last state or the best, and say what came out. Collective."""
    if not parts.history.was_evaluated(ended.step):
        loop.held_out(parts, ended.step)
    parts.reporter.trained(parts.world.gather(peak_memory_bytes()))
    parts.reporter.ended(ended.step, parts.history)
    shown, history = parts.history.last, parts.history
    if parts.config.export.checkpoint == "Best" and history.best is not None:
        shown = history.best
        if shown.step != ended.step:
            go_back(parts, shown.step)
    parts.reporter.phase("Exporting")
    if parts.plan.sequence_ranks > 1:
        # What is exported answers to whole sequences.
        attentions.use(parts.engine.module, "sdpa" if parts.engine.module._supports_sdpa else "eager")
    size = export(parts, volume)
    parts.reporter.phase("Done")
    return TrainResult(
        steps=ended.step,
        planned_steps=parts.plan.total_steps,
        exported_step=shown.step if shown else ended.step,
        loss=ended.loss,
        eval_loss=shown.loss if shown else None,
        perplexity=perplexity(shown.loss) if shown else None,
        export_directory=str(parts.store.folder.export.relative_to(volume)),
        export_bytes=size,
    )


def go_back(parts: loop.Parts, step: int) -> None:
    """Put the model where it was after `step` steps. Collective."""
    checkpoints = parts.store.folder.checkpoints
    found = parts.world.first(lambda: resume.best(checkpoints, step))
    resume.load(parts.engine, found, parts.world, parts.plan.tensor_ranks)
    if parts.world.is_first:
        logger.info("exporting the best checkpoint, %s", found.directory.name)
