"""The training loop, top to bottom.

Every rank takes the same branches: whatever could differ between ranks (loss, a signal, the clock) goes
through one all-reduce at the step boundary first. The gradient of a step is that of the mean loss over all
supervised tokens of the global batch, because every micro-batch's sum is divided by their number over all
ranks (by the sum of their weights, where rows have weights).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from sft_trainer import engine as engines
from sft_trainer import optimizers
from sft_trainer.batches import Plan
from sft_trainer.checkpoint.commit import Store, steps
from sft_trainer.checkpoint.state import TrainerState
from sft_trainer.collate import Batch, Rows
from sft_trainer.config import Precision, TrainConfig
from sft_trainer.distributed import World
from sft_trainer.engine import Engine
from sft_trainer.errors import Interrupted, UserError
from sft_trainer.evaluate import evaluate, perplexity
from sft_trainer.flops import Work
from sft_trainer.history import History, after, is_due, is_exhausted
from sft_trainer.laps import Laps
from sft_trainer.loss import supervised_loss
from sft_trainer.outcome import now
from sft_trainer.reporting import Reporter, StepFacts
from sft_trainer.schedule import learning_rate
from sft_trainer.stopping import StopSignal

Batches = Callable[[int], list[Batch]]  # this rank's micro-batches of a step; Prefetch.take


@dataclass
class Parts:
    """Everything the loop works with; built by assemble.py, and by tests."""

    config: TrainConfig
    world: World
    engine: Engine
    rows: Rows
    plan: Plan
    held_out: tuple[Rows, Plan] | None
    store: Store
    reporter: Reporter
    stop: StopSignal
    precision: Precision
    checkpoint_bytes: int  # expected size, for the space check
    history: History = field(default_factory=History)
    looked_at: float = field(default_factory=time.monotonic)  # when the last evaluation ended
    work: Work = field(default_factory=Work)


class Ended(NamedTuple):
    """Where a training ended: its number of steps, and the loss of the last."""

    step: int
    loss: float | None


def train(parts: Parts, start: int, loss: float | None, batches: Batches) -> Ended:
    """Run steps `start` to the end, or until patience is at an end; the last step has a checkpoint.

    `loss` is that of step `start`, when it was resumed from a checkpoint; `batches` gives this rank's
    micro-batches of each step.

    Raises:
        Interrupted: somebody asked the group to stop; a checkpoint of the last step is committed.
        UserError: with reason Diverged, when loss or gradient is no longer a number: it would be so again.
    """
    world, plan, total = parts.world, parts.plan, parts.plan.total_steps
    saving, looking = parts.config.checkpoint, parts.config.evaluation
    patience = parts.config.training.early_stopping
    every, saved_at = saving.period_steps, time.monotonic()
    if _was_broken_off(parts, start) and judge(parts, start).improved and saving.keep_best:
        save_checkpoint(parts, start, loss)
    for step in range(start, total):
        if is_exhausted(parts.history, patience):
            return Ended(step, loss)
        rate = _rate(parts, step)
        own = applied_step(parts, step, rate, batches)
        clocks = [
            world.is_first and _has_passed(saving.period_seconds, saved_at),
            world.is_first and _has_passed(looking.period_seconds, parts.looked_at),
        ]
        loss_sum, weight, supervised, tokens, stop, save, look = world.sum(
            [own.loss_sum, own.weight, own.supervised, own.tokens, parts.stop.requested, *clocks]
        )
        done = step + 1
        loss = loss_sum / weight if weight else None
        _require_finite(loss, own.norm, done)
        parts.reporter.step(
            StepFacts(
                step=done,
                epoch=done / plan.steps_per_epoch,
                loss=loss,
                learning_rate=rate,
                gradient_norm=own.norm,
                tokens=int(tokens),
                supervised=int(supervised),
                seconds=own.seconds,
                own_tokens=own.tokens,
                own_supervised=own.supervised,
                own_padding=own.padding,
                phases=own.phases,
                loss_scale=own.loss_scale,
                own_flops=own.flops,
            )
        )
        finished = done == total
        if not stop and (look or is_due(looking, done, plan.steps_per_epoch)):
            stop, exhausted, improved = judge(parts, done)
            finished = finished or bool(exhausted)
            save = save or (improved and saving.keep_best)
        if save or stop or finished or (every and done % every == 0):
            save_checkpoint(parts, done, loss)
            saved_at = time.monotonic()
        if stop and not finished:
            raise Interrupted(f"stopped by SIGTERM after step {done}; its checkpoint is committed")
    return Ended(total, loss)


def _has_passed(period: int | None, since: float) -> bool:
    return period is not None and time.monotonic() - since >= period


def _was_broken_off(parts: Parts, start: int) -> bool:
    """Whether the signal that ended the last run kept it from the evaluation after step `start`."""
    plan = parts.plan
    due = 0 < start < plan.total_steps and is_due(parts.config.evaluation, start, plan.steps_per_epoch)
    return due and not parts.history.was_evaluated(start)


class Judgement(NamedTuple):
    """What follows from an evaluation; the same on every rank."""

    stop: float  # a signal came meanwhile, for an evaluation takes longer than a step
    exhausted: float
    improved: float


def judge(parts: Parts, step: int) -> Judgement:
    """Evaluate after `step` steps. Collective."""
    held_out(parts, step)
    exhausted = is_exhausted(parts.history, parts.config.training.early_stopping)
    told = parts.world.sum([parts.stop.requested, exhausted, parts.history.is_best(step)])
    return Judgement(*told)


@dataclass
class OwnStep:
    """What this rank did in one optimizer step."""

    loss_sum: float = 0.0
    weight: float = 0.0
    supervised: int = 0
    tokens: int = 0
    padding: int = 0
    flops: float = 0.0
    norm: float = math.nan
    overflowed: bool = False  # nothing was updated, on any rank
    loss_scale: float | None = None  # only in fp16
    seconds: float = 0.0
    phases: dict[str, float] = field(default_factory=dict)


def applied_step(parts: Parts, step: int, rate: float, batches: Batches) -> OwnStep:
    """`optimizer_step`, repeated with an ever smaller loss scale while its gradients overflow in fp16.

    So a batch is never lost, and neither the schedule nor any counter moves without an update.
    """
    start = time.perf_counter()
    mine = batches(step)
    waited = time.perf_counter() - start
    while (own := optimizer_step(parts, mine, rate)).overflowed:
        parts.reporter.skipped(step + 1, engines.loss_scale(parts.engine))
    own.phases["data_wait"] = waited
    own.seconds = time.perf_counter() - start
    return own


def optimizer_step(parts: Parts, mine: Sequence[Batch], rate: float) -> OwnStep:
    """Forward and backward over `mine`, this rank's micro-batches, then clip and update at rate `rate`."""
    engine, world, own = parts.engine, parts.world, OwnStep()
    laps = Laps(world.device)
    own.supervised = sum(batch.supervised for batch in mine)
    own.weight = sum(batch.weight for batch in mine)
    (everywhere,) = world.sum([own.weight])
    laps.end("rank_wait")
    # DeepSpeed averages gradients over ranks: times their number, it is the sum again. (Over those with tokens of
    # their own: ranks that share layers count each token as often as they are, above and below the line.)
    scale = world.size / (everywhere or 1.0)
    own.loss_scale = engines.loss_scale(engine) if parts.precision == "fp16" else None
    losses = torch.zeros((), dtype=torch.float64, device=world.device)
    for index, batch in enumerate(mine):
        engine.set_gradient_accumulation_boundary(index == len(mine) - 1)
        loss = supervised_loss(engine, batch, scale, parts.config.training.loss)
        laps.end("forward")
        engine.backward(loss, scale_wrt_gas=False)
        losses += loss.detach()
        own.tokens += batch.tokens
        own.padding += batch.padding
        own.flops += parts.work.flops(batch.tokens, batch.supervised, batch.pairs) / parts.plan.tensor_ranks
        laps.end("backward")
    engines.set_learning_rate(engine, rate)
    norm = engines.step(engine)
    own.overflowed, own.norm = norm is None, math.nan if norm is None else norm
    own.loss_sum = float(losses) / scale
    if not parts.plan.counts(world.rank):
        own.tokens = own.padding = own.supervised = 0
    laps.end("optimizer")
    own.phases = laps.seconds()
    return own


def held_out(parts: Parts, step: int) -> None:
    """Evaluate, report and remember; nothing where there is nothing to evaluate on."""
    if parts.held_out is None:
        return
    parts.reporter.phase("Evaluating")
    result = evaluate(parts.engine, *parts.held_out, parts.world, parts.stop)
    if result is not None:
        parts.reporter.evaluated(step, result.loss, perplexity(result.loss), result.seconds)
        stopping = parts.config.training.early_stopping
        parts.history = after(parts.history, step, result.loss, stopping.min_delta if stopping else 0.0)
        parts.looked_at = time.monotonic()
    parts.reporter.phase("Training")


def save_checkpoint(parts: Parts, step: int, loss: float | None) -> None:
    """Commit a checkpoint of the training as it stands after `step` steps, and report it."""
    parts.reporter.phase("Saving")
    start = time.perf_counter()
    state = trainer_state(parts, step, loss)
    fact = parts.store.commit(parts.engine, state, parts.world, parts.checkpoint_bytes)
    parts.checkpoint_bytes = fact.bytes
    parts.reporter.saved(fact, steps(parts.store.folder.checkpoints), time.perf_counter() - start)
    parts.reporter.phase("Training")


def trainer_state(parts: Parts, step: int, loss: float | None) -> TrainerState:
    """Where the training stands after `step` steps."""
    config, plan = parts.config, parts.plan
    return TrainerState(
        step=step,
        total_steps=plan.total_steps,
        epoch=step / plan.steps_per_epoch,
        consumed_sequences=plan.consumed(step),
        seed=config.training.seed,
        global_batch_size=plan.global_batch,
        batches=plan.digest,
        uid=config.job.uid,
        identity=config.identity,
        attempt=config.attempt,
        run_id=parts.store.fence.run_id,
        world_size=parts.world.size,
        zero_stage=config.deepspeed.zero_stage,
        tensor_ranks=config.deepspeed.tensor_parallel_size,
        precision=parts.precision,
        optimizer=optimizers.family(config),
        packed=plan.packed,
        learning_rate=_rate(parts, step - 1),
        loss=loss,
        history=parts.history,
        seconds_since_evaluation=time.monotonic() - parts.looked_at,
        time=now(),
    )


def _rate(parts: Parts, step: int) -> float:
    training = parts.config.training
    return learning_rate(step, parts.plan.total_steps, training.learning_rate, training.scheduler)


def _require_finite(loss: float | None, norm: float, step: int) -> None:
    if math.isfinite(norm) and (loss is None or math.isfinite(loss)):
        return
    raise UserError(
        "Diverged",
        f"training diverged at step {step}: loss {loss}, gradient norm {norm}; lower training.learningRate "
        "or maxGradNorm, lengthen scheduler.warmupSteps, or look for broken rows in the data",
    )
