"""What `sftjob data inspect` finds, and how it shows it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

import tiny
from preparing import CHAT, Room, chat
from sft_trainer import inspection
from sftjob_operator.cli import data
from sftjob_operator.cli.app import app


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    """The tiny model and two files with rows of every kind."""
    tiny.model(tmp_path / "model")
    weighted = {"messages": [CHAT["messages"][0], {**CHAT["messages"][1], "weight": 2.5}]}
    (tmp_path / "more").mkdir()
    rows = {
        "a.jsonl": [CHAT, {"messages": 7}, weighted, CHAT],
        "more/b.jsonl": [chat("q" * 60, "x"), chat("a", "y" * 99)],
    }
    for name, found in rows.items():
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in found))
    return [
        str(tmp_path / "a.jsonl"),
        str(tmp_path / "more"),
        "--model",
        str(tmp_path / "model"),
        "--max-length",
        "64",
    ]


def found(files: list[str], capsys: pytest.CaptureFixture[str], *more: str) -> dict[str, Any]:
    assert inspection.main([*files, *more]) == 0
    return json.loads(capsys.readouterr().out)


def test_rows_are_counted_as_a_job_would(files: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    made = found(files, capsys, "--deduplicate", "Exact")
    assert {key: made[key] for key in ("read", "rows", "truncatedRows", "droppedRows")} == {
        "read": 6,
        "rows": 3,
        "truncatedRows": 1,
        "droppedRows": 1,
    }
    assert (made["duplicateRows"], made["invalidRows"], made["formats"]) == (1, 1, ["Messages"])
    assert made["invalid"] == ["train[0] a.jsonl line 2: expected a list of messages, found a number"]
    assert made["lengths"]["longest"] > made["maxLength"] == 64
    assert sum(one["rows"] for one in made["lengths"]["histogram"]) == 4
    assert (made["packs"], made["tokens"], made["supervisedTokens"]) == (2, 2 * 28 + 64, 2 * 6 + 64 - 20)


@pytest.mark.parametrize("deduplicate", [None, "Exact"])
def test_counts_are_those_of_a_job_with_the_same_settings(
    deduplicate: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    room = Room(tmp_path, monkeypatch)
    asked = [{"talk": row["messages"], "messages": "other"} for row in (CHAT, CHAT, chat("a", "y" * 99))]
    path = room.write("datasets/chats.jsonl", *asked)
    source = {
        "name": "0",
        "path": "datasets/chats.jsonl",
        "format": "Messages",
        "columns": {"messages": "talk"},
    }
    more = {"deduplicate": deduplicate} if deduplicate else {}
    outcome = room.run(train=[source], maxLength=64, **more)
    assert outcome.prepare is not None, outcome.message
    job = json.loads(outcome.prepare.data.to_json())
    model = str(room.workspace / "models" / "tiny")
    options = ["--model", model, "--max-length", "64", "--format", "Messages", "--column", "messages=talk"]
    made = found([str(path), *options], capsys, *(["--deduplicate", deduplicate] if deduplicate else []))
    names = ("rows", "tokens", "supervisedTokens", "truncatedRows", "droppedRows", "duplicateRows", "packs")
    assert {name: made[name] for name in names} == {name: job.get(name, 0) for name in names}
    assert made["rows"] == (2 if deduplicate else 3)


def test_a_row_is_shown_in_pieces_that_count_alike(
    files: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    row = found(files, capsys, "--row", "2", "--deduplicate", "Exact")["row"]
    assert [(piece["text"], piece["weight"]) for piece in row["pieces"]] == [
        ("<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n", 0),
        ("hello<|im_end|>", 2.5),
        ("\n", 0),
    ]


@pytest.mark.parametrize(
    ("more", "words"),
    [(["--row", "9"], "--row 9: there are rows 1 to 4"), (["--template", "/nowhere.jinja"], "was not found")],
    ids=["row", "template"],
)
def test_what_cannot_be_shown_is_one_sentence(
    files: list[str], more: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert inspection.main([*files, *more]) == 71
    assert words in capsys.readouterr().err


def test_supervised_words_are_coloured_or_marked(
    files: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    row = found(files, capsys, "--row", "2")["row"]

    def shown(is_coloured: bool) -> str:
        console = Console(
            force_terminal=is_coloured, color_system="standard" if is_coloured else None, width=80
        )
        with console.capture() as capture:
            console.print(data._row(row, is_coloured=is_coloured), soft_wrap=True)
        return capture.get()

    assert "assistant\n«[2.5 x]hello<|im_end|>»\n" in shown(False)
    assert "\x1b[1;32m[2.5 x]hello<|im_end|>\x1b[0m" in shown(True)


@pytest.mark.processes
def test_the_command_shows_it_all(files: list[str]) -> None:
    done = CliRunner().invoke(app, ["data", "inspect", *files])
    assert done.exit_code == 0, done.output
    for words in ("rows", "of 6 read, Messages", "a.jsonl line 2: expected", "≤", "p50", "«hello<|im_end|>»"):
        assert words in done.output
    as_json = CliRunner().invoke(app, ["data", "inspect", *files, "-o", "json"])
    assert json.loads(as_json.output)["rows"] == 4
    assert CliRunner().invoke(app, ["data", "inspect", "/nowhere", *files]).exit_code == 2
