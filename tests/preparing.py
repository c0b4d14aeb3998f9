"""A workspace with the tiny model, and `prepare` run in it as the pod runs it, in this process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import tiny
from sft_trainer import prepare
from sft_trainer.config import Outcome
from sft_trainer.data.cache import Split, TokenCache
from sft_trainer.data.tokenizer import Tokenizer

CHAT = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]}


def chat(*texts: str) -> dict[str, Any]:
    """A conversation of these texts, user first."""
    roles = ("user", "assistant") * len(texts)
    return {"messages": [{"role": role, "content": text} for role, text in zip(roles, texts, strict=False)]}


class Room:
    """One workspace; `run` prepares in it."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, *, model: bool = True) -> None:
        self.workspace = folder / "workspace"
        self.config = folder / "config"
        self.message = folder / "termination-log"
        for path in (self.workspace / "datasets", self.config):
            path.mkdir(parents=True)
        if model:
            tiny.model(self.workspace / "models" / "tiny")
        monkeypatch.setenv("SFTJOB_WORKSPACE", str(self.workspace))
        monkeypatch.setenv("SFTJOB_CONFIG", str(self.config))
        monkeypatch.setenv("SFTJOB_TERMINATION_LOG", str(self.message))

    def write(self, name: str, *rows: Any) -> Path:
        """JSON lines in the workspace; a string is a line as it is."""
        path = self.workspace / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
        return path

    def run(self, model: dict[str, Any] | None = None, **data: Any) -> Outcome:
        """Prepare with `data` laid over sensible settings; asserts that exit code and message agree."""
        self.settings(model, **data)
        return self.main()

    def settings(self, model: dict[str, Any] | None = None, **data: Any) -> None:
        """Write prepare.json."""
        settings = {
            "train": [{"name": "0", "path": "datasets/chats.jsonl"}],
            "maxLength": 128,
            "packing": "BestFit",
            "lossOn": "Assistant",
            "onTooLong": "Truncate",
            "onInvalidRow": "Fail",
            **data,
        }
        job = {"namespace": "default", "name": "job", "uid": "uid-1"}
        source = model or {"path": "models/tiny"}
        document = {"schemaVersion": 1, "job": job, "model": source, "data": settings, "seed": 1}
        (self.config / "prepare.json").write_text(json.dumps(document))

    def main(self) -> Outcome:
        """Run the entry point on what prepare.json says."""
        self.message.unlink(missing_ok=True)
        code = prepare.main()
        outcome = Outcome.model_validate_json(self.message.read_bytes())
        assert outcome.exit_code == code
        return outcome

    def cache(self, outcome: Outcome) -> TokenCache:
        """The token cache of a successful preparation."""
        assert outcome.prepare is not None, outcome.message
        return TokenCache(self.workspace / outcome.prepare.data.cache)

    def texts(self, split: Split, model: str = "models/tiny") -> list[tuple[str, str]]:
        """Of every row: its text, and the supervised part of it."""
        tokenizer = Tokenizer(self.workspace / model)
        rows = [split.row(index) for index in range(len(split))]
        return [
            (tokenizer.decode(ids.tolist()), tokenizer.decode(ids[weights > 0].tolist()))
            for ids, weights in rows
        ]
