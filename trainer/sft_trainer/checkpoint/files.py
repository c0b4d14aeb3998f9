"""Small durable files: whatever is read after a crash was written by these."""

from __future__ import annotations

import os
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
    total = 0
    for folder, _, names in os.walk(directory, onerror=_raise_failure):
        for name in names:
            with suppress(FileNotFoundError):
                total += os.lstat(os.path.join(folder, name)).st_size
    return total


def _raise_failure(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError | PermissionError):
        raise error
