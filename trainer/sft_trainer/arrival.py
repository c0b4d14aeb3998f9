"""Log lines that tell how much of a download has arrived."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sft_trainer.checkpoint.files import size_of

logger = logging.getLogger(__name__)

_LOG_SECONDS = 10.0


@contextmanager
def progress(directory: Path) -> Iterator[None]:
    """Log every ten seconds how much has arrived in `directory`."""
    done = threading.Event()

    def watch() -> None:
        while not done.wait(_LOG_SECONDS):
            logger.info("downloaded %d MB so far", size_of(directory) >> 20)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()
