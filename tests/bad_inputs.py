"""Bad input, one case each: what is wrong, and what a person must read. LocalCluster and the real cluster share it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tiny

GOOD_ROW = json.dumps({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]})
NO_ANSWER = json.dumps({"messages": [{"role": "user", "content": "only a question"}]})
LONG_ROW = json.dumps(
    {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "long " * 100}]}
)


@dataclass(frozen=True)
class Case:
    """One way to be wrong."""

    name: str
    reason: str
    words: tuple[str, ...]
    """Each must stand in the condition's message: the row, file or field, and the fix."""
    condition: str = "Failed"
    """The condition that is False (Accepted) or True (Failed) for this reason."""
    exit_code: int | None = 71
    """Of the one pod that ran; None = no pod ran at all."""
    patch: dict[str, Any] = field(default_factory=dict)
    arrange: Callable[[Path], None] = lambda workspace: None


def _data(text: str) -> Callable[[Path], None]:
    def arrange(workspace: Path) -> None:
        (workspace / "datasets" / "chats.jsonl").write_text(text)

    return arrange


def _without_tokenizer(workspace: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (workspace / "models" / "tiny" / name).unlink()


CASES = [
    Case(
        "broken-line",
        "InvalidRow",
        ("chats.jsonl", "line 2", "onInvalidRow"),
        arrange=_data(f"{GOOD_ROW}\n{{oops\n"),
    ),
    Case(
        "no-assistant-turn",
        "NoAssistantTurn",
        ("chats.jsonl", "line 2"),
        arrange=_data(f"{GOOD_ROW}\n{NO_ANSWER}\n"),
    ),
    Case("empty-file", "EmptyData", ("chats.jsonl",), arrange=_data("")),
    Case(
        "missing-file",
        "DataNotFound",
        ("datasets/nowhere.jsonl",),
        patch={"data": {"train": [{"path": "datasets/nowhere.jsonl"}]}},
    ),
    Case(
        "row-too-long",
        "RowTooLong",
        ("chats.jsonl", "maxLength"),
        patch={"data": {"onTooLong": "Fail"}},
        arrange=_data(f"{GOOD_ROW}\n{LONG_ROW}\n"),
    ),
    Case("no-tokenizer", "TokenizerMissing", ("models/tiny", "tokenizer.json"), arrange=_without_tokenizer),
    Case("missing-model", "ModelNotFound", ("models/nowhere",), patch={"model": {"path": "models/nowhere"}}),
    Case(
        "nothing-to-learn",
        "NoSupervisedTokens",
        ("maxLength",),
        patch={"data": {"maxLength": 16}},
        arrange=_data(
            json.dumps(
                {"messages": [{"role": "user", "content": "q" * 99}, {"role": "assistant", "content": "a"}]}
            )
            + "\n"
        ),
    ),
    Case(
        "batch-not-divisible",
        "BatchNotDivisible",
        ("globalBatchSize", "microBatchSize"),
        condition="Accepted",
        exit_code=None,
        patch={"training": {"globalBatchSize": 6}, "deepspeed": {"microBatchSize": 2}},
    ),
    *[
        Case(
            f"raw-{name}",
            "DeepSpeedConfigConflict",
            words,
            condition="Accepted",
            exit_code=None,
            patch={"deepspeed": deepspeed},
        )
        for name, words, deepspeed in (
            (
                "precision",
                ("bf16.enabled", "spec.training.precision"),
                {"config": {"bf16": {"enabled": True}}},
            ),
            (
                "stage",
                ("zero_optimization.stage", "spec.deepspeed.zeroStage"),
                {"zeroStage": 2, "config": {"zero_optimization": {"stage": 3}}},
            ),
            (
                "batch",
                ("train_batch_size", "spec.training.globalBatchSize"),
                {"config": {"train_batch_size": 77}},
            ),
        )
    ],
]


def furnish(workspace: Path) -> None:
    """The good model and data that every case spoils in one way."""
    tiny.model(workspace / "models" / "tiny")
    tiny.chats(workspace / "datasets" / "chats.jsonl")


def spec(case: Case) -> dict[str, Any]:
    """The good spec with the case's patch."""
    return merged(tiny.spec(), case.patch)


def merged(base: dict[str, Any], patch: dict[str, Any]) -> dict[str, Any]:
    """`patch` laid over `base`, dictionaries key by key."""
    result = dict(base)
    for key, value in patch.items():
        old = result.get(key)
        result[key] = merged(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return result
