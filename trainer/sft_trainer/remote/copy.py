"""Copies a listing to a folder of the workspace, once: continued after an interruption, verified, renamed into place.

The folder is named after the content (the store's own tags and sizes), so that what has not changed is not copied
again, and what has changed is another folder. An object is read in pieces; each is on disk before the next one is
asked for, so that after a crash everything but the last two pieces is known to be there.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import shutil
import uuid
from concurrent.futures import ThreadPoolExecutor
from io import FileIO
from pathlib import Path

from sft_trainer import layout, uses
from sft_trainer.arrival import progress
from sft_trainer.checkpoint.files import size_of
from sft_trainer.data import cache
from sft_trainer.errors import Network, VolumeFull
from sft_trainer.remote.listing import Listing, Remote

logger = logging.getLogger(__name__)

PIECE_BYTES = 32 * 2**20
_FILES_AT_ONCE = 4
_MD5 = re.compile(r"[0-9a-f]{32}")


def copy(what: Listing, parent: Path, *, piece: int = PIECE_BYTES) -> Path:
    """The folder below `parent` that holds the objects under their names.

    VolumeFull before anything is read if it cannot fit; Network for what may pass.
    """
    entry = parent / f"{_slug(what.uri)}--{digest(what)}"
    with cache.alone(entry) as is_alone:
        if not uses.touch(entry):
            partial = entry.with_name(f".{entry.name}.{'partial' if is_alone else uuid.uuid4().hex[:8]}")
            _copy(what, partial, piece)
            cache.publish(partial, entry)
            logger.info("copied %s: %d MB", what.uri, size_of(entry) >> 20)
    return entry


def digest(what: Listing) -> str:
    """12 hex characters of what the objects are called and what the store says of their content."""
    parts = [what.uri, *(f"{one.name}\n{one.size}\n{one.etag}" for one in what.objects)]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:12]


def _slug(uri: str) -> str:
    """Of a URI what a folder can be called, for people."""
    return re.sub(r"[^A-Za-z0-9.]+", "-", uri.replace("://", "-")).strip("-.")[:80]


def _copy(what: Listing, partial: Path, piece: int) -> None:
    partial.mkdir(parents=True, exist_ok=True)
    _refuse_what_cannot_fit(what, partial)
    logger.info("copying %s: %d files, %d MB ...", what.uri, len(what.objects), what.size >> 20)
    with progress(partial), ThreadPoolExecutor(_FILES_AT_ONCE) as pool:
        pending = [pool.submit(_one, what, one, partial, piece) for one in what.objects]
        try:
            for each in pending:
                each.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    for folder in [path for path in partial.rglob("*") if path.is_dir()]:
        cache.sync(folder)


def _refuse_what_cannot_fit(what: Listing, partial: Path) -> None:
    free = shutil.disk_usage(partial).free
    if what.size - size_of(partial) > free:
        raise VolumeFull(
            f"{what.field}: {what.uri} has {_gib(what.size)} and the workspace volume has {_gib(free)} free: "
            "free space (sftjob clean) or enlarge the claim in spec.workspace"
        )


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{max(size >> 20, 1)} MiB"


def _one(what: Listing, one: Remote, partial: Path, piece: int) -> None:
    path = layout.within(partial, one.name)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
    with os.fdopen(handle, "r+b", buffering=0) as file:
        start = _known(os.fstat(handle).st_size, one.size, piece)
        hashed = _append(what, one, file, start, piece)
        if start and _is_another(one, hashed):
            logger.warning("%s: what was there of %s is damaged; reading it again", what.uri, one.name)
            hashed = _append(what, one, file, 0, piece)
    if _is_another(one, hashed):  # the length is right and the connection was checked: some stores encrypt
        logger.warning("%s: the ETag of %s is not its MD5, which cannot be compared", what.uri, one.name)


def _is_another(one: Remote, md5: str) -> bool:
    return _MD5.fullmatch(one.etag) is not None and md5 != one.etag


def _append(what: Listing, one: Remote, file: FileIO, start: int, piece: int) -> str:
    """Read `one` from `start` to its end; the MD5 of the whole file."""
    file.truncate(start)
    file.seek(0)
    hashed = hashlib.md5(usedforsecurity=False)
    while data := file.read(1 << 20):
        hashed.update(data)
    while start < one.size:
        data = what.read(one, start, min(start + piece, one.size))
        if len(data) != min(piece, one.size - start):
            raise Network(
                f"{what.field}: {what.uri}: {one.name} came incompletely; it will be tried again",
                "SourceUnavailable",
            )
        file.write(data)
        os.fsync(file.fileno())
        hashed.update(data)
        start += len(data)
    os.fsync(file.fileno())
    return hashed.hexdigest()


def _known(there: int, whole: int, piece: int) -> int:
    """How much of a file that was begun is certainly on disk: its last piece may have been on its way."""
    return 0 if there > whole else max(0, there // piece - 1) * piece
