"""The one data set of all contenders: short chats, tokenised once by the trainer's own preparation.

chitchat-dataset (MIT) is fetched at run time and not kept in the repository. What `prepare` made of it, tokens
and which of them are supervised, is also written as JSON for the contenders that know nothing of our cache.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import assets
from sft_trainer.config import Outcome, PrepareResult
from sft_trainer.data.cache import TokenCache

CHATS = assets.Asset(
    requirement="chitchat-dataset==0.9.0",
    archive_sha256="7bf89f36645e2d5ec87d53370c8e851b5a688479c7beb7079cb4c87fc5acea3e",
    member="chitchat_dataset/dataset.json",
    name="chitchat.json",
    sha256="d2a5d0bf6acf354fef51f3af39cbece2220d3b8f6086b658c3d335105798312a",
    megabytes=8,
)
ROWS, SEED = 480, 7


@dataclass(frozen=True)
class Prepared:
    """Where the contenders find model and data; `model` and `cache` are relative to `workspace`."""

    workspace: Path
    model: str
    cache: str
    json: Path
    max_length: int
    rows: int
    tokens: int
    supervised: int


def prepared(workspace: Path, max_length: int) -> Prepared:
    """Fetch, write and prepare what is not there yet: a minute the first time, seconds later."""
    model, chats = workspace / "models" / assets.MODEL.name, workspace / "datasets" / "chats.jsonl"
    for file in (model, chats):
        file.parent.mkdir(parents=True, exist_ok=True)
    if not model.exists():
        shutil.copyfile(assets.model_gguf(), model)
    conversations = json.loads(assets.fetch(CHATS).read_bytes())
    chats.write_text("".join(json.dumps(row) + "\n" for row in chat_rows(conversations)))
    facts = _prepare(workspace, model.relative_to(workspace), chats.relative_to(workspace), max_length)
    cache = TokenCache(workspace / facts.data.cache)
    rows = [cache.train.row(index) for index in range(len(cache.train))]
    file = workspace / "rows.json"
    file.write_text(
        json.dumps([{"ids": ids.tolist(), "supervised": mask.astype(int).tolist()} for ids, mask in rows])
    )
    return Prepared(
        workspace,
        facts.model.directory,
        facts.data.cache,
        file,
        max_length,
        facts.data.rows,
        facts.data.tokens,
        facts.data.supervised_tokens,
    )


def chat_rows(conversations: dict[str, dict]) -> list[dict]:
    """`ROWS` conversations, cut after 2 to 24 turns as chats are: many short, some long."""
    numbers = random.Random(SEED)
    rows = []
    for key in sorted(conversations):
        turns = [" ".join(said["text"] for said in turn) for turn in conversations[key]["messages"]]
        wanted = 2 * min(12, 1 + int(numbers.expovariate(1 / 4.6)))
        if len(turns) < wanted or any(not turn.strip() for turn in turns[:wanted]):
            continue
        roles = ("user", "assistant") * (wanted // 2)
        rows.append({"messages": [{"role": r, "content": t} for r, t in zip(roles, turns, strict=False)]})
        if len(rows) == ROWS:
            break
    return rows


def _prepare(workspace: Path, model: Path, chats: Path, max_length: int) -> PrepareResult:
    config, message = workspace / "config", workspace / "message.json"
    config.mkdir(exist_ok=True)
    data = {
        "train": [{"name": "chats", "path": str(chats)}],
        "maxLength": max_length,
        "packing": "BestFit",
        "lossOn": "Assistant",
        "onTooLong": "Truncate",
        "onInvalidRow": "Fail",
    }
    job = {"namespace": "bench", "name": "bench", "uid": "bench"}
    document = {"job": job, "model": {"path": str(model)}, "data": data, "seed": SEED}
    (config / "prepare.json").write_text(json.dumps(document))
    variables = {
        "SFTJOB_WORKSPACE": str(workspace),
        "SFTJOB_CONFIG": str(config),
        "SFTJOB_TERMINATION_LOG": str(message),
    }
    subprocess.run(
        [sys.executable, "-m", "sft_trainer", "prepare"], env={**os.environ, **variables}, check=True
    )
    facts = Outcome.model_validate_json(message.read_bytes()).prepare
    assert facts is not None
    return facts
