"""The manifest of a checkpoint: every file with its size and hashes.

Two hashes per file: one of every byte, compared on demand, and one of samples (head, tail and blocks
between), which is cheap enough to be compared at every resume.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from pydantic import ValidationError

from sft_trainer import layout
from sft_trainer.config import Report

MANIFEST = "manifest.json"
_BLOCK = 1 << 20
_SAMPLES = 8
_LARGEST = 64 << 20  # bytes of a manifest; 100,000 files have 30 MB


_RANDOM = re.compile(r"rng-(\d+)\.pt$")
_SHARE = re.compile(r"(?:zero_pp_rank_(?P<copy>\d+)_)?mp_rank_(?P<share>\d+)_")


class FileEntry(Report):
    """One file of a checkpoint; `path` is relative to its directory."""

    path: str
    size: int
    sha256: str
    sample: str  # sha256 of the sampled blocks


class Manifest(Report):
    """All files of a checkpoint but the manifest itself."""

    schema_version: int = 1
    files: list[FileEntry]

    @property
    def size(self) -> int:
        """Bytes of the checkpoint."""
        return sum(entry.size for entry in self.files)


def read(directory: Path) -> Manifest | None:
    """The manifest in `directory`; None when it is missing or no manifest. OSError for a volume that fails."""
    path = directory / MANIFEST
    try:
        if path.stat().st_size > _LARGEST:
            return None
        return Manifest.model_validate_json(path.read_bytes())
    except (FileNotFoundError, ValidationError):
        return None


def entry(directory: Path, path: Path) -> FileEntry:
    """Flush `path` to the disk, drop it from the cache, and read every byte of it back."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        whole = hashlib.file_digest(file, "sha256").hexdigest()
        size = os.fstat(file.fileno()).st_size
    return FileEntry(
        path=path.relative_to(directory).as_posix(), size=size, sha256=whole, sample=sample(path, size)
    )


def sample(path: Path, size: int) -> str:
    """Hash of up to ten blocks of 1 MiB spread over the file, its first and last included."""
    last = max(0, size - _BLOCK)
    offsets = sorted({last * i // (_SAMPLES + 1) for i in range(_SAMPLES + 2)})
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for offset in offsets:
            file.seek(offset)
            digest.update(file.read(_BLOCK))
    return digest.hexdigest()


def problem(directory: Path, *, every_byte: bool = False) -> str | None:
    """What is wrong with the checkpoint in `directory`; None when nothing is.

    Raises:
        OSError: the volume fails, which says nothing about the checkpoint.
    """
    manifest = read(directory)
    if manifest is None:
        return "it has no readable manifest"
    for known in manifest.files:
        path = directory / known.path
        try:
            if not _is_within(known.path, directory):
                return f"its manifest names {known.path[:100]!r}, which is not in it"
            size = path.stat().st_size
            if size != known.size:
                return f"{known.path} has {size} bytes instead of {known.size}"
            if sample(path, size) != known.sample:
                return f"{known.path} has changed since it was written"
            if every_byte and _digest(path) != known.sha256:
                return f"{known.path} has changed since it was written"
        except FileNotFoundError:
            return f"{known.path} is missing"
    return None


def _is_within(name: str, directory: Path) -> bool:
    """Whether a manifest may name this file: a forged one would have any file of the pod read."""
    parts = PurePosixPath(name).parts
    if (
        name.startswith("/")
        or ".." in parts
        or "\0" in name
        or any(len(part.encode()) > 255 for part in parts)
    ):
        return False
    try:
        layout.within(directory, name)
    except (ValueError, RuntimeError):  # it leads elsewhere; links in a circle
        return False
    return True


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def files_of_rank(names: Iterable[str], rank: int, tensor_ranks: int = 1) -> list[str]:
    """The files that `rank` wrote, by the numbers in their names; those without any are rank 0's.

    Each rank hashes its own, because on a network file system another node's writes may not be visible yet.
    """
    return [name for name in names if _writer(name, tensor_ranks) == rank]


def _writer(name: str, tensor_ranks: int) -> int:
    """DeepSpeed counts the copies of the model, and the ranks that have the layers of one between them."""
    random = _RANDOM.search(name)
    if random is not None:
        return int(random[1])
    found = _SHARE.search(name)
    return 0 if found is None else int(found["copy"] or 0) * tensor_ranks + int(found["share"])
