"""Which prompts are asked, and why there are sometimes none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gang
from sft_trainer import samples
from sft_trainer.events import Chronicle, Events, read
from sft_trainer.layout import JobFolder


class Rows:
    """Held-out rows of (length, first supervised position, where the answer ends)."""

    def __init__(self, *rows: tuple[int, int, int]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def row(self, index: int) -> tuple[Any, Any]:
        length, start, end = self.rows[index]
        weights = np.zeros(length, np.float32)
        weights[start:end] = 1
        return np.arange(length, dtype=np.int32) + 1000 * index, weights


def begun(tmp_path: Path, **changes: Any) -> JobFolder:
    job = gang.Job(tmp_path / "volume", changes={"evaluation__samples": 2} | changes)
    folder = JobFolder(job.folder)
    Chronicle(Events(folder.events, "uid-1", 1), {"config": job.config()}).started(8, None, {})
    return folder


def test_a_prompt_ends_where_the_first_answer_begins() -> None:
    (prompt,) = samples.chosen(Rows((10, 4, 7)), 3)  # type: ignore[arg-type]
    assert prompt.ids == [0, 1, 2, 3]
    assert prompt.answer == [4, 5, 6]


def test_prompts_come_from_all_over_the_rows_and_are_not_too_long() -> None:
    rows = Rows(*[(10, 4, 7)] * 10, (2000, 1500, 2000), (5, 0, 0), *[(10, 4, 7)] * 10)
    assert [prompt.ids[0] // 1000 for prompt in samples.chosen(rows, 3)] == [0, 9, 21]  # type: ignore[arg-type]
    assert samples.chosen(Rows((2000, 1500, 2000), (5, 0, 0)), 3) == []  # type: ignore[arg-type]
    assert samples.chosen(Rows(), 3) == []  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [({"evaluation__samples": 0}, "spec.evaluation.samples is 0"), ({}, "there is no export")],
)
def test_it_says_why_there_are_none(tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    folder = begun(tmp_path, **changes)
    folder.report.mkdir(exist_ok=True)
    assert samples.main([str(folder.root)]) == 0
    assert json.loads(folder.samples.read_text())["note"] == f"No sample answers: {reason}."


def test_without_a_training_there_are_none(tmp_path: Path) -> None:
    folder = JobFolder(tmp_path / "jobs" / "job")
    folder.report.mkdir(parents=True)
    assert samples.answered(folder, once=True).note == "No sample answers: no training has begun."


def test_a_try_that_did_not_come_back_is_not_repeated(tmp_path: Path) -> None:
    folder = begun(tmp_path)
    Events(folder.events, "uid-1", 1).append("sampling")  # and then the kernel killed the pod
    assert "an earlier try did not come back" in samples.answered(folder, once=True).note
    assert [event.kind for event in read(folder.events)] == ["begun", "sampling"]
    assert "there is no export" in samples.answered(folder, once=False).note  # a person may insist


def test_a_model_that_may_not_fit_is_not_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = begun(tmp_path)
    folder.export.mkdir()
    monkeypatch.setattr(samples.cgroup, "memory_left", lambda: 2**29)
    monkeypatch.setattr(samples, "_has_gpu", lambda: False)
    note = samples.answered(folder, once=True).note
    assert note == "No sample answers: 1.0 GiB of memory are needed and 0.5 are free."


def test_any_error_is_a_line_of_the_report(tmp_path: Path) -> None:
    folder = begun(tmp_path, data__cache="nowhere")
    folder.export.mkdir()
    assert samples.answered(folder, once=True).note.startswith("No sample answers: FileNotFoundError:")
