"""Writes the termination message: how a container ended, in at most 3 KiB of ASCII JSON.

The kubelet truncates what is longer, and truncated JSON is no JSON; so the message is shortened first,
and then the list of checkpoints. Failing to write it must never hide the failure it describes: the caller
gets False.
"""

from __future__ import annotations

import json
import logging
import os
import tempfile
from datetime import UTC, datetime
from pathlib import Path

from sft_trainer.config import ENV_TERMINATION_LOG, TERMINATION_MESSAGE_LIMIT, Outcome
from sft_trainer.errors import TrainerError

logger = logging.getLogger(__name__)

_SHORTEST_MESSAGE = 200  # characters kept before checkpoints are dropped


def now() -> str:
    """The time as RFC 3339 in UTC, to the second."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def failed(error: TrainerError, **more: object) -> Outcome:
    """The Outcome of `error`; `more` are further fields of Outcome (rank, last_step, …)."""
    fields: dict[str, object] = {
        "outcome": "Failed",
        "reason": error.reason,
        "failure_class": error.failure_class,
        "message": error.message,
        "exit_code": int(error.exit_code),
        "time": now(),
    }
    return Outcome.model_validate(fields | more)


def encode(outcome: Outcome, limit: int = TERMINATION_MESSAGE_LIMIT) -> bytes:
    """`outcome` as ASCII JSON of at most `limit` bytes: message cut first, then the oldest checkpoints."""
    data = _dump(outcome)
    if len(data) <= limit:
        return data
    short = outcome.model_copy(
        update={"message": _shorten(outcome.message, len(outcome.message) - _SHORTEST_MESSAGE)}
    )
    while len(_dump(short)) > limit and short.checkpoints:
        oldest = min(short.checkpoints, key=lambda fact: fact.step)
        short = short.model_copy(
            update={"checkpoints": [fact for fact in short.checkpoints if fact is not oldest]}
        )
    if len(_dump(short)) > limit:
        return _shortest(short, limit)
    return _lengthened(outcome, short, limit)


def write_outcome(outcome: Outcome, path: Path | None = None) -> bool:
    """Writes `outcome` atomically to `path`, or to the file the environment names. False: not written."""
    named = path or (Path(name) if (name := os.environ.get(ENV_TERMINATION_LOG)) else None)
    if named is None:
        return False
    data = encode(outcome)
    try:
        _write(named, data)
    except OSError as exc:
        logger.warning("the termination message could not be written to %s: %s", named, exc)
        return False
    return True


def _write(path: Path, data: bytes) -> None:
    """By rename where the directory allows it; in Kubernetes the file is a mount and is written in place."""
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as staged:
            staged.write(data)
        try:
            os.replace(staged.name, path)
            return
        except OSError:
            os.unlink(staged.name)
    except OSError:
        pass
    path.write_bytes(data)


def _dump(outcome: Outcome) -> bytes:
    return json.dumps(
        outcome.model_dump(mode="json", by_alias=True, exclude_none=True), separators=(",", ":")
    ).encode("ascii")


def _shorten(message: str, excess: int) -> str:
    return message if excess <= 0 else message[: max(0, len(message) - excess)].rstrip() + " ..."


def _lengthened(outcome: Outcome, short: Outcome, limit: int) -> bytes:
    """The longest prefix of the message that fits, found by bisection (a character may be 1 to 12 bytes)."""
    best, low, high = _dump(short), min(_SHORTEST_MESSAGE, len(outcome.message)), len(outcome.message)
    while low < high:
        middle = (low + high + 1) // 2
        text = _shorten(outcome.message, len(outcome.message) - middle)
        data = _dump(short.model_copy(update={"message": text}))
        if len(data) <= limit:
            best, low = data, middle
        else:
            high = middle - 1
    return best


def _shortest(outcome: Outcome, limit: int) -> bytes:
    """Without results: they lie on the volume too, and a readable failure is worth more."""
    bare = outcome.model_copy(update={"prepare": None, "train": None})
    while len(_dump(bare)) > limit and bare.message:
        bare = bare.model_copy(update={"message": bare.message[: len(bare.message) // 2]})
    return _dump(bare)
