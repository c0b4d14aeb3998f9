"""metrics.jsonl: a line for every optimizer step and every evaluation, for people, programs and the report.

It survives restarts: a resumed run cuts it to its checkpoint first, so that no step stands there twice.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sft_trainer.checkpoint.files import write_atomically

logger = logging.getLogger(__name__)


class Curves:
    """The one writer of the file; what cannot be written costs one warning."""

    def __init__(self, path: Path) -> None:
        self._path, self._warned = path, False

    def append(self, **values: object) -> None:
        """One line more."""
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with open(self._path, "a", encoding="utf-8") as file:
                file.write(json.dumps(values) + "\n")
        except OSError as error:
            if not self._warned:
                logger.warning(
                    "the curves in %s are incomplete, training goes on: %s", self._path.name, error
                )
            self._warned = True

    def cut(self, resumed_from: int | None) -> dict[int, float]:
        """Drop what is about to happen again; of the steps among it: number and seconds.

        Without a checkpoint that is everything, with the evaluation of the base model at step 0.
        """
        last = -1 if resumed_from is None else resumed_from
        try:
            lines = self._path.read_text(encoding="utf-8", errors="replace").splitlines()
            points = [(line, _parsed(line)) for line in lines]
            kept = [line for line, point in points if point is not None and point["step"] <= last]
            write_atomically(self._path, "".join(f"{line}\n" for line in kept))
            gone = (point for _, point in points if point is not None and point["step"] > last)
            return {point["step"]: float(point.get("seconds") or 0) for point in gone if "lr" in point}
        except FileNotFoundError:
            pass
        except (OSError, TypeError, ValueError) as error:
            logger.warning("the curves in %s could not be cut to step %d: %s", self._path.name, last, error)
        return {}


def read(path: Path) -> Iterator[dict[str, Any]]:
    """All lines that can be read."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            for line in file:
                point = _parsed(line)
                if point is not None:
                    yield point
    except OSError:
        return


def _parsed(line: str) -> dict[str, Any] | None:
    try:
        point = json.loads(line)
        return {**point, "step": int(point["step"])}
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None  # half a line, or none: from a run that was killed, or a node that lost power
