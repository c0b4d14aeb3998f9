"""The training loop, top to bottom.

Every rank takes the same branches: whatever could differ between ranks (loss, a signal, the clock) goes
through one all-reduce at the step boundary first. The gradient of a step is that of the mean loss over all
supervised tokens of the global batch, because every micro-batch's sum is divided by their number over all
ranks.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field

import torch

from sft_trainer import engine as engines
from sft_trainer.batches import Plan
from sft_trainer.checkpoint.commit import Store, steps
from sft_trainer.checkpoint.state import TrainerState
from sft_trainer.collate import Rows, collate
from sft_trainer.config import TrainConfig
from sft_trainer.distributed import World
from sft_trainer.engine import Engine
from sft_trainer.errors import Interrupted, UserError
from sft_trainer.evaluate import Evaluation, evaluate
from sft_trainer.loss import supervised_loss
from sft_trainer.outcome import now
from sft_trainer.precision import Precision
from sft_trainer.reporting import Reporter, StepFacts
from sft_trainer.schedule import learning_rate
from sft_trainer.stopping import StopSignal


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


def train(parts: Parts, start: int, loss: float | None) -> float | None:
    """Run steps `start` to the end, checkpoint the last one; the loss of the last step.

    `loss` is that of step `start`, when it was resumed from a checkpoint.

    Raises:
        Interrupted: somebody asked the group to stop; a checkpoint of the last step is committed.
        UserError: with reason Diverged, when loss or gradient is no longer a number: it would be so again.
    """
    world, plan, total = parts.world, parts.plan, parts.plan.total_steps
    period, every = parts.config.checkpoint.period_seconds, parts.config.checkpoint.period_steps
    evaluate_every, saved_at = parts.config.evaluation.period_steps, time.monotonic()
    for step in range(start, total):
        rate = learning_rate(
            step, total, parts.config.training.learning_rate, parts.config.training.scheduler
        )
        own = optimizer_step(parts, step, rate)
        due = world.is_first and period is not None and time.monotonic() - saved_at >= period
        loss_sum, supervised, tokens, stop, save = world.sum(
            [own.loss_sum, own.supervised, own.tokens, parts.stop.requested, due]
        )
        done = step + 1
        loss = loss_sum / supervised if supervised else None
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
            )
        )
        if evaluate_every and done % evaluate_every == 0 and done < total and not stop:
            held_out(parts, done)
            (stop,) = world.sum([parts.stop.requested])  # an evaluation takes longer than a step
        if save or stop or done == total or (every and done % every == 0):
            save_checkpoint(parts, done, loss, rate)
            saved_at = time.monotonic()
        if stop and done < total:
            raise Interrupted(f"stopped by SIGTERM after step {done}; its checkpoint is committed")
    return loss


@dataclass
class OwnStep:
    """What this rank did in one optimizer step."""

    loss_sum: float = 0.0
    supervised: int = 0
    tokens: int = 0
    padding: int = 0
    norm: float = math.nan
    seconds: float = 0.0
    phases: dict[str, float] = field(default_factory=dict)


def optimizer_step(parts: Parts, step: int, rate: float) -> OwnStep:
    """Forward and backward over this rank's micro-batches of `step`, then clip and update at rate `rate`."""
    engine, world, own = parts.engine, parts.world, OwnStep()
    clock = start = time.perf_counter()
    batches = [
        collate(micro, parts.rows, world.device, packed=parts.plan.packed)
        for micro in parts.plan.micro_batches(step, world.rank)
    ]
    own.supervised = sum(batch.supervised for batch in batches)
    (everywhere,) = world.sum([own.supervised])
    # DeepSpeed averages gradients over ranks: times their number, it is the sum again.
    scale = world.size / max(1.0, everywhere)
    clock = _lap(own.phases, "data_wait", clock)
    losses = torch.zeros((), dtype=torch.float64, device=world.device)
    for index, batch in enumerate(batches):
        engine.set_gradient_accumulation_boundary(index == len(batches) - 1)
        loss = supervised_loss(engine, batch, scale, extra=parts.config.training.loss)
        clock = _lap(own.phases, "forward", clock)
        engine.backward(loss, scale_wrt_gas=False)
        losses += loss.detach()
        own.tokens += batch.tokens
        own.padding += batch.padding
        clock = _lap(own.phases, "backward", clock)
    engines.set_learning_rate(engine, rate)
    own.norm = engines.step(engine)
    own.loss_sum = float(losses) / scale
    clock = _lap(own.phases, "optimizer", clock)
    own.seconds = clock - start
    return own


def held_out(parts: Parts, step: int) -> Evaluation | None:
    """Evaluate and report; None where there is nothing to evaluate on."""
    if parts.held_out is None:
        return None
    parts.reporter.phase("Evaluating")
    result = evaluate(parts.engine, *parts.held_out, parts.world, parts.stop)
    if result is not None:
        parts.reporter.evaluated(step, result.loss, result.perplexity, result.seconds)
    return result


def save_checkpoint(parts: Parts, step: int, loss: float | None, rate: float) -> None:
    """Commit a checkpoint of the training as it stands after `step` steps, and report it."""
    config, plan = parts.config, parts.plan
    parts.reporter.phase("Saving")
    start = time.perf_counter()
    state = TrainerState(
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
        precision=parts.precision,
        packed=plan.packed,
        learning_rate=rate,
        loss=loss,
        time=now(),
    )
    fact = parts.store.commit(parts.engine, state, parts.world, parts.checkpoint_bytes)
    parts.checkpoint_bytes = fact.bytes
    parts.reporter.saved(fact, steps(parts.store.folder.checkpoints), time.perf_counter() - start)


def _require_finite(loss: float | None, norm: float, step: int) -> None:
    if math.isfinite(norm) and (loss is None or math.isfinite(loss)):
        return
    raise UserError(
        "Diverged",
        f"training diverged at step {step}: loss {loss}, gradient norm {norm}; lower training.learningRate "
        "or maxGradNorm, lengthen scheduler.warmupSteps, or look for broken rows in the data",
    )


def _lap(phases: dict[str, float], name: str, since: float) -> float:
    current = time.perf_counter()
    phases[name] = phases.get(name, 0.0) + current - since
    return current
