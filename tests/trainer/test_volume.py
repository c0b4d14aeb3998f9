"""`python -m sft_trainer volume`: answers about the workspace, and about nothing outside it."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from sft_trainer.checkpoint.manifest import MANIFEST, Manifest, entry
from sft_trainer.events import Events
from sft_trainer.layout import JobFolder
from sft_trainer.volume import Desk


def ask(workspace: Path, **request: Any) -> list[dict[str, Any]]:
    return list(Desk(workspace).answers(json.dumps(request)))


def test_a_file_comes_with_its_size_and_in_pieces(tmp_path: Path):
    data = bytes(range(256)) * 500
    (tmp_path / "a.bin").write_bytes(data)
    size, *parts, end = ask(tmp_path, do="file", path="a.bin")
    assert size == {"size": len(data)}
    assert b"".join(base64.b64decode(part["data"]) for part in parts) == data
    assert end == {"end": True}


@pytest.mark.parametrize("path", ["../secret", "/etc/passwd", "link/secret"])
def test_nothing_outside_the_workspace_is_read(tmp_path: Path, path: str):
    workspace = tmp_path / "workspace"
    workspace.mkdir()
    (tmp_path / "secret").write_text("s")
    (workspace / "link").symlink_to(tmp_path)
    (answer,) = ask(workspace, do="file", path=path)
    assert "leaves the workspace" in answer["error"]
    for kind in ("logs", "verify", "report"):
        (answer,) = ask(workspace, do=kind, job="../../x", attempt=1)
        assert "leaves the workspace" in answer["error"]


def test_what_is_not_there_is_missing_and_what_is_unknown_an_error(tmp_path: Path):
    (answer,) = ask(tmp_path, do="file", path="nothing")
    assert answer["missing"]
    (answer,) = ask(tmp_path, do="dance")
    assert not answer["missing"]
    assert "take a newer image" in answer["error"]
    assert "error" in next(Desk(tmp_path).answers("no json"))
    assert "error" in next(Desk(tmp_path).answers("[]"))


def test_a_report_is_made_of_what_there_is(tmp_path: Path):
    (answer,) = ask(tmp_path, do="report", job="bot")
    assert answer["missing"]
    assert "no training has begun in jobs/bot" in answer["error"]
    Events(JobFolder.of(tmp_path, "bot").events, "uid-1", 1).append("begun", world_size=2)
    size, *parts, end = ask(tmp_path, do="report", job="bot")
    page = b"".join(base64.b64decode(part["data"]) for part in parts)
    assert (len(page), end) == (size["size"], {"end": True})
    assert b"Not finished" in page
    assert not JobFolder.of(tmp_path, "bot").page.exists(), "the volume may be read-only"


def test_logs_come_rank_by_rank(tmp_path: Path):
    folder = tmp_path / "jobs" / "bot" / "logs" / "2"
    folder.mkdir(parents=True)
    for rank in (10, 2):
        (folder / f"rank-{rank}.log").write_text(f"first\nof {rank}\n")
    lines = ask(tmp_path, do="logs", job="bot", attempt=2, rank=None, tail=1)
    assert lines == [{"rank": 2, "line": "of 2"}, {"rank": 10, "line": "of 10"}, {"end": True}]
    assert [each.get("line") for each in ask(tmp_path, do="logs", job="bot", attempt=2, rank=10)] == [
        "first",
        "of 10",
        None,
    ]
    assert ask(tmp_path, do="logs", job="bot", attempt=1)[0]["missing"]


def test_every_byte_of_every_checkpoint_is_compared(tmp_path: Path):
    for step in (1, 2):
        folder = tmp_path / "jobs" / "bot" / "checkpoints" / f"step-{step}"
        folder.mkdir(parents=True)
        (folder / "weights").write_bytes(b"w" * 100)
        listed = Manifest(files=[entry(folder, folder / "weights")])
        (folder / MANIFEST).write_text(listed.model_dump_json(by_alias=True))
    (folder / "weights").write_bytes(b"v" * 100)
    found = ask(tmp_path, do="verify", job="bot")
    assert found == [
        {"name": "step-1", "bytes": 100, "problem": None},
        {"name": "step-2", "bytes": 100, "problem": "weights has changed since it was written"},
        {"end": True},
    ]
