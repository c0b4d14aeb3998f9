"""Collects what nobody has used for long: caches, what killed preparations left, and checkpoints of finished jobs.

Exports, reports, logs and the user's own files are never touched, and of a job without an export nothing is. What goes
is first renamed into a trash folder, looked at once more, and then removed: a kill at any moment leaves an entry whole or
in the trash, which the next collection empties.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from sft_trainer import layout, uses
from sft_trainer.checkpoint.files import size_of
from sft_trainer.config import CollectConfig
from sft_trainer.data import cache

logger = logging.getLogger(__name__)

LEAST_SECONDS = 24 * 3600.0  # a training marks its caches every hour, and clocks and pauses are what they are
# A job that came later has used its caches within LEAST_SECONDS, and clocks may differ.
_LONGEST_LISTED_SECONDS = 12 * 3600.0
_ABANDONED_SECONDS = 3600.0


class Item(NamedTuple):
    """Something that may go: `path` in the workspace."""

    path: str
    size: int
    unused_seconds: float


def find(workspace: Path, policy: CollectConfig) -> list[Item]:
    """What the policy lets go, the longest unused first; nothing where jobs may have come that it does not list."""
    now = uses.volume_time(_ready(workspace))
    listed = policy.listed_time
    if listed is not None and now - listed.timestamp() > _LONGEST_LISTED_SECONDS:
        logger.info("nothing is collected: the list of jobs that are not over is of %s", listed)
        return []
    needed = {*policy.directories, *_bases_of_adapters(workspace)}
    caches = sorted(_caches(workspace, now), key=lambda item: -item.unused_seconds)
    over = 0 if policy.limit_bytes is None else sum(item.size for item in caches) - policy.limit_bytes
    found: list[Item] = []
    for item in caches:
        if item.path in needed or item.unused_seconds < LEAST_SECONDS:
            continue
        if _is_old(item, policy) or over > 0:
            found.append(item)
            over -= item.size
    return found + (list(_checkpoints(workspace, policy, now)) if policy.checkpoints else [])


def collect(workspace: Path, policy: CollectConfig) -> Iterator[Item]:
    """Remove what `find` finds, one after another; an item comes when it is gone. One collection at a time."""
    with cache.alone(layout.trash(_ready(workspace))) as is_alone:
        _empty_trash(workspace, is_alone)
        for item in find(workspace, policy):
            if _remove(workspace, item):
                yield item


def _remove(workspace: Path, item: Item) -> bool:
    path, trash = workspace / item.path, layout.trash(workspace)
    aside = trash / f"{path.name}.{uuid.uuid4().hex[:8]}"
    before = _used(path)
    try:
        path.rename(aside)
    except FileNotFoundError:
        return False  # another collection was faster
    if _used(aside) != before:  # a preparation found it in between
        try:
            aside.rename(path)
        except OSError:
            shutil.rmtree(aside, ignore_errors=True)  # it was made again meanwhile
        return False
    shutil.rmtree(aside, ignore_errors=True)
    return True


def _empty_trash(workspace: Path, is_alone: bool) -> None:
    """What a killed collection has left; where the volume has no locks, not what another may still look at."""
    now = uses.volume_time(workspace)
    for left in layout.trash(workspace).iterdir():
        if is_alone or now - left.lstat().st_ctime > _ABANDONED_SECONDS:  # renaming has set it
            shutil.rmtree(left, ignore_errors=True)


def _ready(workspace: Path) -> Path:
    layout.trash(workspace).mkdir(parents=True, exist_ok=True)
    return workspace


def _caches(workspace: Path, now: float) -> Iterator[Item]:
    for kind in (layout.data_cache, layout.source_cache, layout.model_cache):
        folder = kind(workspace)
        if not folder.is_dir() or folder.is_symlink():
            continue
        for entry in folder.iterdir():
            if entry.is_dir() and not entry.is_symlink():
                yield _item(workspace, entry, now)


def _checkpoints(workspace: Path, policy: CollectConfig, now: float) -> Iterator[Item]:
    """Folders of checkpoints beside an export that is the newest of all, also those that were put aside."""
    open_ = frozenset(policy.jobs)
    for export in (workspace / "jobs").glob("*/export"):
        job = export.parent
        if job.name in open_ or not export.is_dir() or job.is_symlink() or not any(export.iterdir()):
            continue
        exported = _used(export)
        if _used(layout.JobFolder(job).prepared) > exported:
            continue  # a later job of this name, which may be about to go on from them
        for folder in job.glob("checkpoints*"):
            if folder.is_dir() and not folder.is_symlink() and _used(folder) <= exported:
                item = _item(workspace, folder, now)
                if item.size and _is_old(item, policy):
                    yield item


def _is_old(item: Item, policy: CollectConfig) -> bool:
    return policy.unused_seconds is not None and item.unused_seconds >= max(
        policy.unused_seconds, LEAST_SECONDS
    )


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
    return Item(path.relative_to(workspace).as_posix(), size_of(path), now - _used(path))


def _used(path: Path) -> float:
    """Its newest time, or of what is in it: a download adds to files that are there."""
    times = [0.0]
    with suppress(FileNotFoundError):
        times.append(path.lstat().st_mtime)
    for root, folders, names in os.walk(path):
        for name in (*folders, *names):
            try:
                times.append(os.lstat(os.path.join(root, name)).st_mtime)
            except FileNotFoundError:
                continue
    return max(times)
