"""The benchmark reads what its contenders say, counts it over both ranks, and ends them after the last step."""

import json
import os
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
SAYS = """
import json, sys, time
rank = 0
for step in range(1, {steps} + 1):
    for rank in (0, 1):
        said = dict(rank=rank, step=step, tokens=100 * step + rank, supervised=10, loss=step / 2)
        sys.stdout.write(json.dumps(said) + chr(10))
    sys.stdout.write("noise" + chr(10) + str(sum(range(4_000_000))) + chr(10))
    sys.stdout.flush()
while {lives}:
    time.sleep(60)
"""


@pytest.fixture
def measure(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT))
    from bench.trainer import measure

    return measure


def contender(measure: ModuleType, steps: int, lives: bool, name: str = "floor"):
    command = [sys.executable, "-c", SAYS.format(steps=steps, lives=lives)]
    return measure.Contender(name, command, os.environ, measure.json_step)


def test_what_counts_are_the_steps_after_the_warm_up_of_both_ranks(
    measure: ModuleType, tmp_path: Path
) -> None:
    figures = measure.run(contender(measure, 3, lives=True), 3, 1, tmp_path / "log")
    assert figures.tokens_per_step == (200 + 201 + 300 + 301) / 2
    assert figures.supervised_per_second / figures.tokens_per_second == pytest.approx(40 / 1002)
    assert figures.loss == 1.5
    assert figures.peak_bytes > 1_000_000
    assert json.loads((tmp_path / "log").read_text().splitlines()[0])["step"] == 1


def test_a_contender_that_dies_is_named_with_its_log(measure: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(measure.EndedEarlyError, match=f"trl ended before step 5 .*{tmp_path.name}"):
        measure.run(contender(measure, 2, lives=False, name="trl"), 5, 1, tmp_path / "log")
