"""Random SFTJobs: whatever the API server lets in, or an earlier one did, is answered with a condition."""

from __future__ import annotations

import asyncio
import os
from concurrent.futures import ProcessPoolExecutor

import looptime
import pytest

from fuzzing.bodies import Bodies
from fuzzing.lives import live

FEW, MANY, CHUNK = 150, 100_000, 500


def survive(first: int, count: int) -> tuple[int, list[str]]:
    """How many of these were admitted, and what went wrong, by seed."""
    bodies, admitted, wrong = Bodies(), 0, []
    for seed in range(first, first + count):
        with asyncio.Runner(loop_factory=looptime.new_event_loop) as runner:
            try:
                admitted += runner.run(live(bodies, seed))
            except Exception as error:
                wrong.append(f"seed {seed}: {type(error).__name__}: {error}"[:500])
    return admitted, wrong


@pytest.mark.slow
def test_random_sftjobs_neither_break_the_operator_nor_stay_in_its_queue():
    admitted, wrong = survive(0, FEW)
    assert not wrong, "\n".join(wrong)
    assert FEW // 4 < admitted < FEW, "what is generated should be neither all good nor all bad"


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_a_hundred_thousand_random_sftjobs():
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        chunks = [pool.submit(survive, first, CHUNK) for first in range(0, MANY, CHUNK)]
        wrong = [line for chunk in chunks for line in chunk.result()[1]]
    assert not wrong, f"{len(wrong)} of {MANY:,}, among them\n" + "\n".join(wrong[:20])
