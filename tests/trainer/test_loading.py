"""What a rank holds while a model is loaded, and that it is the model."""

from __future__ import annotations

from pathlib import Path

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
