"""What a rank holds while a model is loaded, and that it is the model."""

from __future__ import annotations

import os
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

import gang
import tiny
from loading_peaks import loaded

pytestmark = pytest.mark.processes


@pytest.mark.parametrize(("kind", "share"), [("float32", 0.5), ("bfloat16", 0.25)])
def test_under_zero_3_no_rank_ever_has_more_than_its_share_and_a_layer(
    kind: str, share: float, tmp_path: Path
) -> None:
    folder = tiny.model(tmp_path / "large", hidden=768, layers=5)
    size = (folder / "model.safetensors").stat().st_size
    assert size > 100e6
    seen = gang.call(loaded, 2, folder=str(folder), small=str(tiny.model(tmp_path / "small")), kind=kind)
    assert seen["wrong"] == []
    assert seen["held"] == pytest.approx(share * size, rel=0.01)
    assert max(seen["peaks"]) < share * size + 32e6, seen["peaks"]


def slow_rank() -> int:
    """A rank as any other; that of number 1 reads the weights for longer than a computation may take."""
    from torch.distributed import distributed_c10d

    from sft_trainer import model

    quick = model.load

    def load(*arguments: Any, **named: Any) -> Any:
        if os.environ["RANK"] == "1":
            time.sleep(14)
        return quick(*arguments, **named)

    model.load = load
    distributed_c10d.default_pg_timeout = timedelta(seconds=8)  # of groups that DeepSpeed makes
    return gang.train()


def test_a_node_may_read_the_weights_for_longer_than_a_computation_may_take(tmp_path: Path) -> None:
    ended = gang.Job(tmp_path / "volume", rank=slow_rank).run(training__maxSteps=1, deepspeed__zeroStage=0)
    assert ended.codes == [0, 0], ended.output
