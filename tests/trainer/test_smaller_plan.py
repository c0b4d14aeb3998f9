"""A training that goes on with a smaller micro-batch, and then recomputing, has the curve of one that never changed."""

import signal
from pathlib import Path

import pytest

import gang

pytestmark = pytest.mark.processes

STEPS = 6
PLANS = [(2, 1, "None"), (1, 2, "None"), (1, 2, "Full")]  # as policy.relief of the operator makes them


def changes(micro: int, passes: int, recompute: str) -> dict[str, object]:
    return {
        "training__maxSteps": STEPS,
        "training__microBatchSize": micro,
        "training__gradientAccumulationSteps": passes,
        "deepspeed__activationCheckpointing": recompute,
        "checkpoint__periodSteps": None,
        "evaluation__periodSteps": None,
    }


@pytest.mark.parametrize("stage", [1, 3])
def test_smaller_plans_train_as_the_first_one_does(stage: int, tmp_path: Path) -> None:
    whole = gang.Job(tmp_path / "whole", changes={**changes(*PLANS[0]), "deepspeed__zeroStage": stage})
    assert whole.run().codes == [0, 0]
    for number, plan in enumerate(PLANS):
        job = gang.Job(tmp_path / "eased", changes={**changes(*plan), "deepspeed__zeroStage": stage})
        is_last = number + 1 == len(PLANS)
        with job.start(attempt=number + 1) as run:
            if not is_last:
                run.ranks.until(f"step {2 * number + 1}/{STEPS}")
                run.ranks.send(signal.SIGTERM)
            ended = run.end()
        assert ended.codes == [0 if is_last else 74] * 2, ended.output
        assert ended.outcomes[0] is not None
        assert ended.outcomes[0].resumed_from_step == (2 * number or None)
    assert set(job.curve()) == set(range(1, STEPS + 1))
    assert job.curve() == {step: pytest.approx(loss, rel=1e-4) for step, loss in whole.curve().items()}
