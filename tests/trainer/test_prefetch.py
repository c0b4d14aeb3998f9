"""The batches made ahead are those of the plan, in its order; errors arrive, and the thread leaves with the loop."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from sft_trainer.batches import Plan
from sft_trainer.collate import collate
from sft_trainer.data.packing import pack
from sft_trainer.distributed import World
from sft_trainer.prefetch import Prefetch

LENGTHS = np.array([9, 30, 12, 5, 21, 17, 8, 28, 3, 11])
CPU = torch.device("cpu")


class Rows:
    """Row i is i times the number i; `broken` cannot be read."""

    lengths = LENGTHS

    def __init__(self, broken: int | None = None) -> None:
        self.broken = broken
        self.threads: set[str] = set()
        self.read = [threading.Event() for _ in LENGTHS]

    def row(self, index: int) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
        self.threads.add(threading.current_thread().name)
        self.read[index].set()
        if index == self.broken:
            raise OSError(f"row {index} is gone")
        return np.full(LENGTHS[index], index, np.int32), np.ones(LENGTHS[index], np.bool_)


def plan(**changes: Any) -> Plan:
    chosen: dict[str, Any] = {"lengths": LENGTHS, "max_length": 32, "packer": pack, "global_batch": 3}
    return Plan(**chosen, micro_batch=1, world_size=2, seed=3, epochs=3, **changes)


def world(rank: int) -> World:
    return World(rank, rank, 2, CPU, None)  # type: ignore[arg-type] - no collective is called


@contextmanager
def no_thread_is_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) == before


@pytest.mark.parametrize("rank", [0, 1])
def test_every_step_gets_the_batches_of_the_plan(rank: int) -> None:
    rows, batches = Rows(), plan()
    with no_thread_is_left(), Prefetch(rows, batches, world(rank), 0) as ahead:
        for step in range(batches.total_steps):
            wanted = [collate(m, Rows(), CPU, packed=True) for m in plan().micro_batches(step, rank)]
            taken = ahead.take(step)
            assert [b.input_ids.tolist() for b in taken] == [b.input_ids.tolist() for b in wanted]
            assert [b.supervised for b in taken] == [b.supervised for b in wanted]
    assert all(name.startswith("prefetch") for name in rows.threads)


def test_a_resumed_run_begins_in_the_middle_and_ends_with_the_plan() -> None:
    last = plan().total_steps - 1
    with Prefetch(Rows(), plan(), world(0), last) as ahead:
        first = plan().micro_batches(last, 0)[0].packs[0][0]
        assert int(ahead.take(last)[0].input_ids[0, 0]) == first
        with pytest.raises(ValueError, match="comes next"):
            ahead.take(last + 1)


def test_a_step_out_of_order_is_refused() -> None:
    with Prefetch(Rows(), plan(), world(0), 0) as ahead, pytest.raises(ValueError, match="step 0 comes next"):
        ahead.take(1)


def test_an_error_of_the_thread_is_raised_where_its_step_is_taken() -> None:
    first, second = (plan().micro_batches(step, 0)[0].packs[0] for step in (0, 1))
    assert second[0] not in first
    with no_thread_is_left(), Prefetch(Rows(broken=second[0]), plan(), world(0), 0) as ahead:
        ahead.take(0)
        with pytest.raises(OSError, match=f"row {second[0]} is gone"):
            ahead.take(1)


def test_the_thread_is_joined_when_the_loop_fails() -> None:
    def loop() -> None:
        with Prefetch(Rows(), plan(), world(0), 0) as ahead:
            ahead.take(0)
            raise RuntimeError("diverged")

    with no_thread_is_left(), pytest.raises(RuntimeError, match="diverged"):
        loop()


@pytest.mark.parametrize("start", [0, 2])
def test_while_a_step_computes_the_rows_of_the_next_are_read_and_those_of_the_first_before_it(
    start: int,
) -> None:
    """A step is made here of waiting for the very reads that would be on its path otherwise: then it would not end."""
    rows, batches = Rows(), plan()
    with Prefetch(rows, batches, world(0), start) as ahead:
        for step in range(start, batches.total_steps):
            wanted = [row for micro in batches.micro_batches(step, 0) for pack in micro.packs for row in pack]
            assert all(rows.read[row].wait(10) for row in wanted), f"step {step} waits for its rows"
            for row in wanted:
                rows.read[row].clear()
            ahead.take(step)
