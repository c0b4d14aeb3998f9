"""The batches of the next step, made by a thread while this step computes.

One thread and one step ahead are enough: a step computes for longer than numpy takes to lay out its tokens, and
both release the interpreter. At the end of an epoch the thread packs the next one. It changes nothing about
*which* batches these are, and leaves no process behind.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

import torch

from sft_trainer.batches import Plan
from sft_trainer.collate import Batch, Rows, collate
from sft_trainer.distributed import World

_HOST = torch.device("cpu")


class Prefetch:
    """This rank's micro-batches, step by step from `start` to the end of the plan; leaving it joins the thread."""

    def __init__(self, rows: Rows, plan: Plan, world: World, start: int) -> None:
        self._rows, self._plan, self._world = rows, plan, world
        self._total, self._step = plan.total_steps, start
        self._thread = ThreadPoolExecutor(1, "prefetch", initializer=_use, initargs=(world.device,))
        self._next = self._begin(start)

    def take(self, step: int) -> list[Batch]:
        """The micro-batches of `step` on this rank's device; the thread begins with those of the step after it.

        Steps are taken in order, each once: ValueError otherwise. What went wrong in the thread is raised here.
        """
        if self._next is None or step != self._step:
            raise ValueError(f"step {self._step} comes next, not {step}")
        batches = self._next.result()
        self._step += 1
        self._next = self._begin(self._step)
        return [batch.to(self._world.device) for batch in batches]

    def __enter__(self) -> Prefetch:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._thread.shutdown(wait=True, cancel_futures=True)

    def _begin(self, step: int) -> Future[list[Batch]] | None:
        return self._thread.submit(self._make, step) if step < self._total else None

    def _make(self, step: int) -> list[Batch]:
        packed, pin = self._plan.packed, self._world.device.type == "cuda"
        micro_batches = self._plan.micro_batches(step, self._world.rank)
        made = [collate(micro, self._rows, _HOST, packed=packed) for micro in micro_batches]
        return [batch.pinned() for batch in made] if pin else made


def _use(device: torch.device) -> None:
    """A thread begins on GPU 0: pinning memory from there would open a context of every rank on it."""
    if device.type == "cuda":
        torch.cuda.set_device(device)
