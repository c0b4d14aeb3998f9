"""Tells people and the operator how a training goes: log lines, progress, metrics.jsonl, Prometheus.

Every rank has one; only rank 0's speaks, apart from the metrics. Nothing here decides anything, and nothing
here may stop a training.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from sft_trainer.config import CheckpointFact, Progress
from sft_trainer.curves import Curves
from sft_trainer.history import History
from sft_trainer.listening import Audience
from sft_trainer.metrics import Metrics, mfu, peak_memory_bytes
from sft_trainer.outcome import now
from sft_trainer.progress import ProgressFile
from sft_trainer.starting import Start

logger = logging.getLogger(__name__)

_KEPT_CHECKPOINTS = 10
_PACE_STEPS = 20  # steps over which speed and remaining time are averaged


@dataclass(frozen=True)
class StepFacts:
    """One finished optimizer step. Tokens and loss are of all ranks, `own_*` of this one."""

    step: int  # finished steps, this one included
    epoch: float
    loss: float | None  # mean per supervised token; None when nothing was supervised
    learning_rate: float
    gradient_norm: float
    tokens: int
    supervised: int
    seconds: float
    own_tokens: int
    own_supervised: int
    own_padding: int
    phases: Mapping[str, float]
    loss_scale: float | None = None  # only in fp16
    own_flops: float = 0.0


@dataclass
class Journal:
    """What the outcome will say of this run, kept up to date for the moment it ends."""

    last_step: int | None = None
    resumed_from_step: int | None = None
    checkpoints: list[CheckpointFact] = field(default_factory=list)

    @property
    def last_verified_step(self) -> int | None:
        """Step of the newest committed checkpoint."""
        return max((fact.step for fact in self.checkpoints), default=None)


class Reporter:
    """Log, progress, curves and metrics of one rank."""

    def __init__(
        self,
        *,
        speaks: bool,
        progress: Progress,
        file: ProgressFile,
        curves: Path,
        metrics: Metrics,
        journal: Journal,
        start: Start,
        audience: Audience,
    ) -> None:
        self._start: Start | None = start  # until the first step has ended
        self._speaks, self._file, self._audience = speaks, file, audience
        self._curves = Curves(curves)
        self._progress, self._metrics, self._journal = progress, metrics, journal
        self._pace: deque[tuple[int, float]] = deque(maxlen=_PACE_STEPS)
        self._peak_flops: float | None = None

    def started(
        self,
        total_steps: int,
        resumed_from: int | None,
        precision: str,
        version: str,
        attention: str,
        peak_flops: float | None = None,
    ) -> None:
        """Training is about to begin, or to go on; `peak_flops` is of this rank's device, where it is known."""
        self._journal.resumed_from_step, self._journal.last_step = resumed_from, resumed_from or 0
        self._peak_flops = peak_flops
        self._metrics.started(
            total_steps=total_steps,
            resumed_from_step=resumed_from or 0,
            precision=precision,
            version=version,
            attention=attention,
            peak_flops=peak_flops,
            checkpoint=max(self._journal.checkpoints, key=lambda fact: fact.step, default=None),
        )
        if not self._speaks:
            return
        lost = self._curves.cut(resumed_from)
        self._audience.tell(lambda one: one.started(total_steps, resumed_from, lost))
        self._publish(
            state="Training", step=resumed_from or 0, total_steps=total_steps, resumed_from_step=resumed_from
        )

    def step(self, facts: StepFacts) -> None:
        """An optimizer step ended."""
        self._journal.last_step = facts.step
        self._metrics.step(
            step=facts.step,
            loss=facts.loss,
            learning_rate=facts.learning_rate,
            gradient_norm=facts.gradient_norm,
            tokens=facts.own_tokens,
            supervised_tokens=facts.own_supervised,
            padded_tokens=facts.own_padding,
            step_seconds=facts.seconds,
            phase_seconds=facts.phases,
            loss_scale=facts.loss_scale,
            flops=facts.own_flops,
        )
        self._first_step_ended()
        if not self._speaks:
            return
        self._audience.tell(lambda one: one.step(facts))
        self._pace.append((facts.tokens, facts.seconds))
        seconds = sum(s for _, s in self._pace)
        speed = sum(t for t, _ in self._pace) / seconds if seconds > 0 else 0.0
        total = self._progress.total_steps
        remaining = int(seconds / len(self._pace) * (total - facts.step))
        shown = "-" if facts.loss is None else f"{facts.loss:.4f}"
        logger.info(
            "step %d/%d loss %s lr %.3g grad %.3f tok/s %.0f eta %s",
            *(facts.step, total, shown, facts.learning_rate, facts.gradient_norm, speed, duration(remaining)),
        )
        self._curves.append(
            step=facts.step,
            epoch=round(facts.epoch, 4),
            loss=facts.loss,
            lr=facts.learning_rate,
            grad_norm=facts.gradient_norm,
            tokens=facts.tokens,
            supervised_tokens=facts.supervised,
            seconds=round(facts.seconds, 4),
            **({} if facts.loss_scale is None else {"loss_scale": facts.loss_scale}),
        )
        self._publish(
            state="Training",
            step=facts.step,
            epoch=facts.epoch,
            loss=facts.loss,
            learning_rate=facts.learning_rate,
            tokens_per_second=round(speed, 1),
            mfu=mfu(facts.own_flops, facts.seconds, self._peak_flops),
            peak_memory_bytes=peak_memory_bytes(),
            estimated_remaining_seconds=remaining,
        )

    def skipped(self, step: int, loss_scale: float) -> None:
        """Gradients of `step` overflowed; it is repeated with this loss scale."""
        self._metrics.skipped()
        if self._speaks:
            logger.info("step %d overflowed in fp16 and is repeated with loss scale %g", step, loss_scale)

    def ended(self, step: int, history: History) -> None:
        """The last step is done, before the planned end or at it."""
        planned = self._progress.total_steps
        if self._speaks and step < planned and history.mark is not None:
            logger.info(
                "stopped early at step %d of %d: the last %d evaluations were not better than that of step %d "
                "(eval loss %.4f)",
                *(step, planned, history.waited, history.mark.step, history.mark.loss),
            )
        self._publish(step=step, total_steps=step, estimated_remaining_seconds=0)

    def trained(self, peaks: Sequence[int]) -> None:
        """All steps are done; `peaks` is the highest memory of every rank in bytes."""
        self._audience.tell(lambda one: one.trained(peaks))

    def close(self, seconds: float) -> None:
        """The run ends; listeners that hold something back have so many seconds for it."""
        self._audience.tell(lambda one: one.close(seconds))

    def _first_step_ended(self) -> None:
        if self._start is None:
            return
        self._start.lap("first step")
        phases, spent, self._start = self._start.phases, str(self._start), None
        self._metrics.start(phases)
        if self._speaks:
            logger.info("started in %s", spent)
            self._audience.tell(lambda one: one.first_step(phases))

    def phase(
        self, state: Literal["Starting", "Training", "Evaluating", "Saving", "Exporting", "Done"]
    ) -> None:
        """What this run is busy with now."""
        self._publish(state=state)

    def evaluated(self, step: int, loss: float, perplexity: float, seconds: float) -> None:
        """An evaluation ended."""
        self.evaluation_ended()
        self._metrics.evaluation(loss=loss, seconds=seconds, perplexity=perplexity)
        if self._speaks:
            logger.info("step %d eval loss %.4f perplexity %.3f (%.1f s)", step, loss, perplexity, seconds)
            self._curves.append(step=step, eval_loss=loss, perplexity=perplexity, seconds=round(seconds, 4))
            self._publish(eval_loss=loss, perplexity=perplexity)
            self._audience.tell(lambda one: one.evaluated(step, loss, perplexity))

    def evaluation_ended(self) -> None:
        """With or without a result: its time is no part of the first step's."""
        if self._start is not None:
            self._start.lap("evaluation")

    def saved(self, fact: CheckpointFact, kept: list[int], seconds: float) -> None:
        """A checkpoint was committed; `kept` are the steps whose checkpoints lie there now."""
        known = [old for old in self._journal.checkpoints if old.step in kept and old.step != fact.step]
        self._journal.checkpoints = sorted([*known, fact], key=lambda f: f.step)[-_KEPT_CHECKPOINTS:]
        self._metrics.checkpoint(step=fact.step, seconds=seconds, size_bytes=fact.bytes)
        if self._speaks:
            logger.info("checkpoint %s committed: %.1f MB in %.1f s", fact.name, fact.bytes / 1e6, seconds)
            self._publish()
            self._audience.tell(lambda one: one.saved(fact, seconds))

    def _publish(self, **changes: object) -> None:
        if not self._speaks:
            return
        always = {
            "time": now(),
            "last_verified_step": self._journal.last_verified_step,
            "checkpoints": self._journal.checkpoints,
        }
        self._progress = self._progress.model_copy(update={**changes, **always})
        self._file.write(self._progress)


def duration(seconds: int) -> str:
    """Seconds as 45s, 2m10s or 3h05m."""
    if seconds < 60:
        return f"{seconds}s"
    if seconds < 3600:
        return f"{seconds // 60}m{seconds % 60:02d}s"
    return f"{seconds // 3600}h{seconds % 3600 // 60:02d}m"
