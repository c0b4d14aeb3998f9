"""Log lines: one JSON object each (or plain text for a terminal), with the SFTJob they are about."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any, TextIO

FORMATS = ("json", "plain")


class JsonFormatter(logging.Formatter):
    """time, level, logger, message; namespace, name and uid of the SFTJob; exception."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **_subject(record),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


class PlainFormatter(logging.Formatter):
    """For people at a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        """Time level [namespace/name] message."""
        subject = _subject(record)
        prefix = f"[{subject.get('namespace')}/{subject.get('name')}] " if subject else ""
        time = datetime.fromtimestamp(record.created).astimezone().strftime("%H:%M:%S")
        text = f"{time} {record.levelname:<7} {prefix}{record.getMessage()}"
        return f"{text}\n{self.formatException(record.exc_info)}" if record.exc_info else text


def _subject(record: logging.LogRecord) -> dict[str, Any]:
    """Our `extra={"sftjob": …}`, or the object reference Kopf attaches to its own lines."""
    ours = getattr(record, "sftjob", None)
    if ours is not None:
        return dict(ours)
    kopf_ref = getattr(record, "k8s_ref", None) or {}
    return {key: kopf_ref[key] for key in ("namespace", "name", "uid") if kopf_ref.get(key)}


def configure(log_format: str, level: str, stream: TextIO | None = None) -> None:
    """Set the root logger up; ValueError for a format or level that does not exist."""
    if log_format not in FORMATS:
        raise ValueError(f"SFTJOB_OPERATOR_LOG_FORMAT={log_format!r}: one of {', '.join(FORMATS)}")
    if level.upper() not in logging.getLevelNamesMapping():
        raise ValueError(f"SFTJOB_OPERATOR_LOG_LEVEL={level!r}: one of DEBUG, INFO, WARNING, ERROR")
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter() if log_format == "json" else PlainFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    # Kopf tells of every event it handles; that is our DEBUG, not our INFO.
    logging.getLogger("kopf").setLevel(logging.WARNING if level.upper() != "DEBUG" else logging.DEBUG)
    logging.getLogger("asyncio").setLevel(logging.WARNING)
