"""Small durable files: whatever is read after a crash was written by these."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path


def write_atomically(path: Path, text: str) -> None:
    """Replace `path` so that a reader, or a crash, sees the old text or the new, never a part."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Make names created in, renamed in or removed from `path` durable, where the file system can."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:
        pass  # some network file systems refuse it on directories
    finally:
        os.close(descriptor)


def size_of(directory: Path) -> int:
    """Bytes of all files below `directory`; no link is followed, and what goes away meanwhile does not count.

    Raises:
        OSError: the volume fails. A folder that may not be read counts nothing.
    """
    return sum(found.st_size for found in below(directory) if not stat.S_ISDIR(found.st_mode))


def below(directory: Path) -> Iterator[os.stat_result]:
    """What is said of every file and folder below `directory`; no link is followed, and what goes away meanwhile is not.

    Raises:
        OSError: the volume fails. A folder that may not be read has nothing in it.
    """
    for root, folders, names in os.walk(directory, onerror=_raise_failure):
        for name in (*folders, *names):
            with suppress(FileNotFoundError):
                yield os.lstat(os.path.join(root, name))


def _raise_failure(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError | PermissionError):
        raise error
