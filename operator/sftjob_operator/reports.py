"""Reading what pods say: termination messages and /progress. Untrusted: what is malformed is no message.

A pod runs the user's image. What it says ends in status and in the next pod's configuration, so sizes and
numbers are bounded here, once, and text is reduced to printable characters.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import PurePosixPath
from typing import Any

from pydantic import BaseModel, ValidationError

from sft_trainer.config import Outcome, PrepareResult, Progress

_LARGEST = 2**53  # what JSON numbers carry exactly, and more than any count here
_MESSAGE_BYTES = 4096  # the kubelet's own limit
_PROGRESS_BYTES = 65536
_REASON = re.compile(r"[A-Za-z][A-Za-z0-9]{0,63}")


def read_outcome(message: str | None) -> Outcome | None:
    """The Outcome in a termination message; None when there is none, or it is not one."""
    if not message or len(message) > _MESSAGE_BYTES:
        return None
    try:
        outcome = Outcome.model_validate_json(message)
    except (ValidationError, ValueError):
        return None
    if not _is_bounded(outcome):
        return None
    if outcome.prepare is not None and not _is_usable(outcome.prepare):
        return None
    return outcome


def read_progress(body: bytes | None) -> Progress | None:
    """The answer of /progress; None when it is not one."""
    if not body or len(body) > _PROGRESS_BYTES:
        return None
    try:
        progress = Progress.model_validate_json(body)
    except (ValidationError, ValueError):
        return None
    return progress if _is_bounded(progress) else None


def read_facts(value: Any) -> PrepareResult | None:
    """Facts that were kept in status; None when they are not there or cannot be read."""
    try:
        facts = PrepareResult.model_validate(value)
    except ValidationError:
        return None
    return facts if _is_bounded(facts) and _is_usable(facts) else None


def reason_word(text: str | None, otherwise: str) -> str:
    """`text` if it is a CamelCase word that a condition can have as its reason."""
    return text if text and _REASON.fullmatch(text) else otherwise


def sentence(text: str, limit: int) -> str:
    """Untrusted text as one line of at most `limit` printable characters."""
    line = " ".join("".join(char if char.isprintable() else " " for char in text).split())
    return line if len(line) <= limit else line[: limit - 1].rstrip() + "…"


def decimal(value: float | None) -> str | None:
    """A measured number for status: four decimals (or digits, if large); None for what is no finite number."""
    if value is None or not math.isfinite(value):
        return None
    return f"{value:.4f}" if abs(value) < 1e9 else f"{value:.4g}"


def timestamp(text: str | None, otherwise: datetime) -> str:
    """An RFC 3339 time from a pod, normalised; `otherwise` where it is none."""
    return rfc3339(parse_time(text) or otherwise)


def rfc3339(moment: datetime) -> str:
    """As the API writes times: UTC, whole seconds."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def parse_time(text: Any) -> datetime | None:
    """An aware time from RFC 3339; None for what is none."""
    if not isinstance(text, str) or len(text) > 40:
        return None
    try:
        moment = datetime.fromisoformat(text)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError):
        return None


def _is_bounded(value: BaseModel) -> bool:
    return all(0 <= number < _LARGEST for number in _integers(value))


def _integers(value: Any) -> Iterator[int]:
    if isinstance(value, bool):
        return
    if isinstance(value, int):
        yield value
    elif isinstance(value, BaseModel):
        for name in type(value).model_fields:
            yield from _integers(getattr(value, name))
    elif isinstance(value, list):
        for item in value:
            yield from _integers(item)


def _is_usable(facts: PrepareResult) -> bool:
    """Paths stay in the workspace, and a model has at least one of everything it is counted by."""
    model, data = facts.model, facts.data
    counts = (model.parameters, model.hidden_size, model.layers, model.vocabulary_size)
    return all(_is_relative(path) for path in (model.directory, data.cache)) and min(counts) > 0


def _is_relative(path: str) -> bool:
    pure = PurePosixPath(path)
    return bool(path) and len(path) <= 1024 and not pure.is_absolute() and ".." not in pure.parts
