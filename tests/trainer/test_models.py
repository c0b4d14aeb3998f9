"""Every architecture trains one exact step, packed where it keeps documents apart, and its export loads."""

from typing import Any

import pytest

import architectures
import gang
from sft_trainer.attention import PER_DOCUMENT

pytestmark = pytest.mark.processes

MIXES_DOCUMENTS = {"bloom", "xglm"}  # they do not go by position ids: the self-check has to find that
NO_SDPA = {"gemma2", "bloom", "gpt_neo", "xglm"}
LOGITS_CHANGE = {"gemma2"}  # by soft-capping, after the head


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """One process for all: its imports take longer than the steps."""
    volume = tmp_path_factory.mktemp("models")
    gang.Job(volume, ranks=1)
    return gang.call(architectures.steps, 1, volume=str(volume))


@pytest.mark.parametrize("kind", architectures.MODELS)
def test_an_architecture_trains_exactly_and_is_exported(kind: str, results: dict[str, Any]) -> None:
    found = results[kind]
    assert found["norm"] == pytest.approx(1, abs=1e-4)
    assert found["loss"] == pytest.approx(1, abs=1e-4)
    assert found["packed"] is (kind not in MIXES_DOCUMENTS)
    assert found["attention"] == ("eager" if kind in NO_SDPA else PER_DOCUMENT)
    assert found["chunked"] is (kind not in LOGITS_CHANGE)
    assert found["export"] > 0
    assert found["heads"] == 4
