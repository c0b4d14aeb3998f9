"""The batches of the next step, made by a thread while this step computes; those of the first meanwhile, too.

One thread and one step ahead are enough: a step computes for longer than numpy takes to lay out its tokens, and
both release the interpreter. At the end of an epoch the thread packs the next one. It changes nothing about
*which* batches these are, and leaves no process behind.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import TracebackType

import torch

from sft_trainer.batches import Plan
from sft_trainer.collate import Batch, Rows, collate
from sft_trainer.data.ahead import Ahead
from sft_trainer.distributed import World

_HOST = torch.device("cpu")


class Prefetch:
    """This rank's micro-batches, step by step from `start` to the end of the plan, which begin to be made at once.

    Leaving it joins the thread.
    """

    def __init__(self, rows: Rows, plan: Plan, world: World, start: int) -> None:
        self._device, self._total, self._step = world.device, plan.total_steps, start
        self._made = Ahead(_steps(rows, plan, world, start), "prefetch")

    def take(self, step: int) -> list[Batch]:
        """The micro-batches of `step` on this rank's device; the thread begins with those of the step after it.

        Steps are taken in order, each once: ValueError otherwise. What went wrong in the thread is raised here.
        """
        if step != self._step or step >= self._total:
            raise ValueError(f"step {self._step} comes next, not {step}")
        batches = next(self._made)
        self._step += 1
        return [batch.to(self._device) for batch in batches]

    def __enter__(self) -> Prefetch:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._made.close()


def _steps(rows: Rows, plan: Plan, world: World, start: int) -> Iterator[list[Batch]]:
    """All that is left of the plan, on the host. Runs in the thread."""
    on_gpu = world.device.type == "cuda"
    if on_gpu:  # a thread begins on GPU 0: pinning memory from there would open a context of every rank on it
        torch.cuda.set_device(world.device)
    for step in range(start, plan.total_steps):
        micro_batches = plan.micro_batches(step, world.rank)
        made = [collate(micro, rows, _HOST, packed=plan.packed) for micro in micro_batches]
        yield [batch.pinned() for batch in made] if on_gpu else made
