"""The progress file is whole at every moment and never stops a training."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from sft_trainer.config import Progress
from sft_trainer.progress import ProgressFile, read_progress


def at(step: int) -> Progress:
    return Progress(
        attempt=1, run_id="r", state="Training", step=step, total_steps=9, time="2026-01-01T00:00:00Z"
    )


def test_the_file_holds_the_last_progress_and_nothing_else_is_left(tmp_path: Path) -> None:
    file = ProgressFile(tmp_path / "progress.json")
    for step in range(3):
        file.write(at(step))
    assert read_progress(tmp_path / "progress.json") == at(2)
    assert [path.name for path in tmp_path.iterdir()] == ["progress.json"]


def test_a_reader_that_holds_the_old_file_still_sees_it_whole(tmp_path: Path) -> None:
    file = ProgressFile(tmp_path / "progress.json")
    file.write(at(1))
    with (tmp_path / "progress.json").open() as reader:
        file.write(at(2))
        assert Progress.model_validate_json(reader.read()) == at(1)


def test_a_missing_folder_costs_one_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = ProgressFile(tmp_path / "gone" / "progress.json")
    with caplog.at_level(logging.WARNING):
        file.write(at(1))
        file.write(at(2))
    assert len(caplog.records) == 1


@pytest.mark.parametrize("content", [None, b"", b"{", b"\xff", b'{"step": 1}'])
def test_what_cannot_be_read_is_no_progress(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "progress.json").write_bytes(content)
    assert read_progress(tmp_path / "progress.json") is None
