"""A good document for each parser, to be damaged: bytes at random never get beyond the first brace."""

from __future__ import annotations

import json
from collections.abc import Sequence

from ruamel.yaml import YAML

from fuzzing.bodies import TESTS
from worlds import prepared_outcome, progress, trained_outcome

_ROWS = [
    {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "weight": 1}], "tools": []},
    {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": [{"type": "text", "text": "b"}]}]},
    {"conversations": [{"from": "function_call", "value": '{"name": "f", "arguments": {}}'}, {"from": "observation", "value": ""}]},
    {"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}], "content": None}]},
    {"instruction": "a", "input": "b", "output": "c", "history": [["a", "b"]], "system": "s"},
    {"prompt": "\n\nHuman: a\n\nAssistant:", "completion": "b", "chosen": "b", "rejected": "c"},
]  # fmt: skip
_STATE = {
    "step": 3,
    "totalSteps": 9,
    "epoch": 0.5,
    "consumedSequences": 6,
    "seed": 1,
    "globalBatchSize": 2,
    "batches": "b",
    "uid": "u",
    "identity": "i",
    "attempt": 1,
    "runId": "r",
    "worldSize": 2,
    "zeroStage": 2,
    "precision": "bf16",
    "packed": True,
    "learningRate": 1e-4,
    "loss": 1.5,
    "history": {},
    "time": "2026-01-01T00:00:00Z",
}
_LINES = [
    {"kind": "begun", "uid": "u", "attempt": 1, "time": 1.5, "phases": {"a": 1}},
    {"step": 3, "loss": 1.0, "lr": 1e-4, "seconds": 0.5},
]


def _lines(documents: Sequence[object]) -> bytes:
    return b"\n".join(json.dumps(document).encode() for document in documents)


def _rendered(name: str) -> bytes:
    """What the operator writes for the trainer, from the golden files."""
    text = (TESTS / "core" / "golden" / "cpu-two-nodes" / "expected.yaml").read_text()
    passes = YAML(typ="safe", pure=True).load(text)
    made = [child for steps in passes.values() for step in steps for child in step.values()]
    return next(data[name].encode() for child in made if name in (data := child.get("data") or {}))


DOCUMENTS: dict[str, bytes] = {
    "hostfile": b"# gang\nbot-1-0.bot slots=2\nbot-1-1.bot\tslots=2\n",
    "rows": _lines(_ROWS),
    "json rows": json.dumps({"version": "1", "data": _ROWS}).encode(),
    "manifest": json.dumps(
        {"schemaVersion": 1, "files": [{"path": "owner.json", "size": 3, "sha256": "0", "sample": "0"}]}
    ).encode(),
    "trainer state": json.dumps(_STATE).encode(),
    "termination message": trained_outcome().encode(),
    "progress": progress().to_json().encode(),
    "progress file": progress().to_json().encode(),
    "marker": prepared_outcome().encode(),
    "train config": _rendered("train.json"),
    "prepare config": _rendered("prepare.json"),
    "facts": prepared_outcome().encode(),
    "yaml": (TESTS / "core" / "golden" / "cpu-two-nodes" / "sftjob.yaml").read_bytes(),
    "owner": b'{"uid": "u", "identity": "i"}',
    "fence": b'{"uid": "u", "attempt": 1, "started": "2026-01-01T00:00:00Z", "runId": "r"}',
    "events": _lines(_LINES),
    "curves": _lines(_LINES),
    "quantity": b"12.5Gi",
    "time": b"2026-01-01T12:00:00.123456+02:00",
}
