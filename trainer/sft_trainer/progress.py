"""The progress file: rank 0 replaces it, the launcher serves its bytes at /progress.

A file and not a call, because the reader must neither wait for a busy rank nor see half a document. Writing
it never stops training: a full or missing scratch folder costs one warning.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

from pydantic import ValidationError

from sft_trainer.config import Progress

logger = logging.getLogger(__name__)


class ProgressFile:
    """The one writer of a progress file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._warned = False

    def write(self, progress: Progress) -> None:
        """Replace the file in one step; failures are logged once and swallowed."""
        temporary = self._path.with_name(f".{self._path.name}.{os.getpid()}")
        try:
            temporary.write_text(progress.to_json(), encoding="utf-8")
            temporary.replace(self._path)
        except OSError as error:
            if not self._warned:
                logger.warning("progress is not reported, training goes on: %s", error)
            self._warned = True


def read_progress(path: Path) -> Progress | None:
    """The progress last written to `path`; None when there is none that can be read."""
    try:
        return Progress.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None
