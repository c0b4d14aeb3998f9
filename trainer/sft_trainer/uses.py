"""When a cache was last used: the modification time of its folder, set by every preparation and by what trains on it.

The volume's own clock sets it and reads it, so that the clocks of nodes do not matter; and nothing has to be undone
when a user of it is killed.
"""

from __future__ import annotations

import logging
import os
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from sft_trainer import layout
from sft_trainer.config import UNPREPARED
from sft_trainer.errors import Crash

logger = logging.getLogger(__name__)

PERIOD_SECONDS = 3600.0


def touch(entry: Path) -> bool:
    """Mark `entry` as used now; False where it is not there."""
    try:
        os.utime(entry)
    except FileNotFoundError:
        return False
    except OSError as exc:  # another user's, or a volume that is full
        logger.debug("%s cannot be marked as used: %s", entry, exc)
    return True


@contextmanager
def kept(
    workspace: Path, directories: Sequence[str], period_seconds: float = PERIOD_SECONDS
) -> Iterator[None]:
    """Mark these folders of the caches as used, now and every hour."""
    root = layout.cache_root(workspace)
    entries = [workspace / one for one in directories if (workspace / one).is_relative_to(root)]
    done = threading.Event()

    def keep() -> None:
        while True:
            for entry in entries:
                touch(entry)
            if done.wait(period_seconds):
                return

    keeper = threading.Thread(target=keep, daemon=True)  # a volume that hangs must not hold the launcher
    keeper.start()
    try:
        yield
    finally:
        done.set()


def require(workspace: Path, directories: Sequence[str]) -> None:
    """Somebody may have cleaned up while the job was suspended.

    Raises:
        Crash: one of these is not there; its reason has the operator prepare again.
    """
    for place in directories:
        if not layout.within(workspace, place).is_dir():
            raise Crash(f"{place} is no longer on the volume: it is prepared again", UNPREPARED)


def volume_time(folder: Path) -> float:
    """Seconds since the epoch by the clock of the volume."""
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".now-") as file:
        os.utime(file.name)
        return os.stat(file.name).st_mtime
