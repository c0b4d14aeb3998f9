"""Collects what nobody has used for long: caches, what killed preparations left, and checkpoints of finished jobs.

Exports, reports, logs and the user's own files are never touched, and of a job without an export nothing is. What goes
is first renamed into a trash folder, looked at once more, and then removed: a kill at any moment leaves an entry whole or
in the trash, which the next collection empties.
"""

from __future__ import annotations

import json
import logging
import shutil
import stat
import time
import uuid
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

from sft_trainer import layout, uses
from sft_trainer.checkpoint.files import below
from sft_trainer.config import CollectConfig
from sft_trainer.data import cache

logger = logging.getLogger(__name__)

LEAST_SECONDS = 24 * 3600.0  # a training marks its caches every hour, and clocks and pauses are what they are
_LONGEST_LISTED_SECONDS = 12 * 3600.0  # with LEAST_SECONDS there is room for clocks that differ
_ABANDONED_SECONDS = 3600.0


class Item(NamedTuple):
    """Something that may go: `path` in the workspace, its bytes, and how long ago it was used, at `used`."""

    path: str
    size: int
    unused_seconds: float
    used: float


class _Extent(NamedTuple):
    size: int
    used: float


def find(workspace: Path, policy: CollectConfig) -> list[Item]:
    """What the policy lets go, the longest unused first. Nothing is written, where nothing may be."""
    try:
        now = uses.volume_time(workspace)
    except OSError:
        now = time.time()
    return sorted(_found(workspace, policy, now), key=lambda item: item.used)


def collect(workspace: Path, policy: CollectConfig) -> Iterator[Item]:
    """Remove what the policy lets go, as it is found; an item comes when nobody finds it any more. One at a time.

    Raises:
        NotADirectoryError: the trash is behind a link, which may lead anywhere.
        OSError: the volume fails.
    """
    trash = layout.trash(workspace)
    if _has_link(workspace, trash):
        raise NotADirectoryError(
            f"{layout.shown(trash)} is behind a link, and nothing is removed through one"
        )
    trash.mkdir(parents=True, exist_ok=True)
    with cache.alone(trash) as is_alone:
        _empty_trash(workspace, is_alone)
        for item in _found(workspace, policy, uses.volume_time(trash)):
            aside = _put_aside(workspace, item)
            if aside is not None:
                yield item
                shutil.rmtree(aside, ignore_errors=True)


def is_current(policy: CollectConfig, now: float) -> bool:
    """Whether a job that came since the policy's jobs were listed has used its caches within LEAST_SECONDS."""
    return policy.listed_time is None or now - policy.listed_time.timestamp() <= _LONGEST_LISTED_SECONDS


def _found(workspace: Path, policy: CollectConfig, now: float) -> Iterator[Item]:
    """What is old as it is met, without a look into what is not; then the longest unused beyond the limit."""
    if not is_current(policy, now):
        logger.info("nothing is collected: the list of jobs that are not over is of %s", policy.listed_time)
        return
    needed = {*policy.directories, *_bases_of_adapters(workspace)}
    stays, may_go = 0, []
    for path in _caches(workspace):
        is_spared = path.relative_to(workspace).as_posix() in needed
        if policy.limit_bytes is None and (is_spared or not _is_old(now - _touched(path), policy)):
            continue
        item = _item(workspace, path, now)
        if is_spared or item.unused_seconds < LEAST_SECONDS:
            stays += item.size
        elif _is_old(item.unused_seconds, policy):
            yield item
        else:
            may_go.append(item)
    if policy.limit_bytes is not None:
        over = stays + sum(item.size for item in may_go) - policy.limit_bytes
        for item in sorted(may_go, key=lambda item: item.used):
            if over <= 0:
                break
            yield item
            over -= item.size
    if policy.checkpoints:
        yield from _checkpoints(workspace, policy, now)


def _put_aside(workspace: Path, item: Item) -> Path | None:
    """Where it is in the trash; None where it was used since it was found, is being made, or another was faster."""
    path = workspace / item.path
    aside = layout.trash(workspace) / f"{path.name}.{uuid.uuid4().hex[:8]}"
    try:
        with _preparations_wait(workspace, path) as is_free:
            if not is_free:
                return None
            path.rename(aside)
            if _extent(aside).used == item.used:
                return aside
            try:
                aside.rename(path)
            except OSError:
                shutil.rmtree(aside, ignore_errors=True)  # it was made again meanwhile
    except FileNotFoundError:
        pass
    except PermissionError as exc:
        logger.info("%s stays: %s", item.path, exc.strerror)
    return None


def _preparations_wait(workspace: Path, path: Path) -> AbstractContextManager[bool]:
    """The lock of a cache, or of what was left of one (`.NAME.partial`): who looks for it waits, and finds or makes it."""
    if not path.is_relative_to(layout.cache_root(workspace)):
        return nullcontext(True)
    name = path.name
    return cache.at_once(path.with_name(name[1:].rpartition(".")[0]) if name.startswith(".") else path)


def _empty_trash(workspace: Path, is_alone: bool) -> None:
    """What a killed collection has left; where the volume has no locks, not what another may still look at."""
    now = uses.volume_time(workspace)
    for left in layout.trash(workspace).iterdir():
        if is_alone or now - left.lstat().st_ctime > _ABANDONED_SECONDS:  # renaming has set it
            shutil.rmtree(left, ignore_errors=True)


def _has_link(workspace: Path, folder: Path) -> bool:
    """Whether `folder` or one above it, below the workspace, is a link."""
    return any(one.is_symlink() for one in (folder, *folder.parents) if workspace in one.parents)


def _caches(workspace: Path) -> Iterator[Path]:
    for kind in (layout.data_cache, layout.source_cache, layout.model_cache):
        folder = kind(workspace)
        if not folder.is_dir() or _has_link(workspace, folder):
            continue
        for entry in folder.iterdir():
            if entry.is_dir() and not entry.is_symlink():
                yield entry


def _checkpoints(workspace: Path, policy: CollectConfig, now: float) -> Iterator[Item]:
    """Folders of checkpoints beside an export that is the newest of all, also those that were put aside."""
    open_ = frozenset(policy.jobs)
    if (workspace / "jobs").is_symlink():
        return
    for export in (workspace / "jobs").glob("*/export"):
        job = export.parent
        if job.name in open_ or not export.is_dir() or job.is_symlink() or not any(export.iterdir()):
            continue
        exported = _extent(export).used
        if _touched(layout.JobFolder(job).prepared) > exported:
            continue  # a later job of this name, which may be about to go on from them
        for folder in job.glob("checkpoints*"):
            if folder.is_dir() and not folder.is_symlink():
                item = _item(workspace, folder, now)
                if item.size and item.used <= exported and _is_old(item.unused_seconds, policy):
                    yield item


def _is_old(unused_seconds: float, policy: CollectConfig) -> bool:
    return policy.unused_seconds is not None and unused_seconds >= max(policy.unused_seconds, LEAST_SECONDS)


def _bases_of_adapters(workspace: Path) -> set[str]:
    """Models without which an exported adapter cannot be asked anything."""
    found = set()
    for prepared in (workspace / "jobs").glob("*/prepared.json"):
        if any((prepared.parent / "export").rglob("adapter_config.json")):
            try:
                document: dict[str, Any] = json.loads(prepared.read_text(encoding="utf-8"))
                found.add(str(document["result"]["model"]["directory"]))
            except (OSError, ValueError, KeyError, TypeError):
                continue
    return found


def _item(workspace: Path, path: Path, now: float) -> Item:
    size, used = _extent(path)
    return Item(path.relative_to(workspace).as_posix(), size, now - used, used)


def _touched(path: Path) -> float:
    """The time of the file, or of the folder itself, which every use sets: what is in it may be newer. 0 = none there."""
    try:
        return path.lstat().st_mtime
    except FileNotFoundError:
        return 0.0


def _extent(path: Path) -> _Extent:
    """Bytes of the files, and the newest time of all, for a download adds to files that are there."""
    size, used = 0, _touched(path)
    for found in below(path):
        used = max(used, found.st_mtime)
        size += 0 if stat.S_ISDIR(found.st_mode) else found.st_size
    return _Extent(size, used)
