"""Whose checkpoints lie in the job's folder, and what to do when they are another job's.

A job that was deleted and created again under the same name has another uid; with other data it also has
another identity. Neither must ever continue the old weights unasked, nor delete them.
"""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from sft_trainer.checkpoint.files import sync_directory, write_atomically
from sft_trainer.config import Report
from sft_trainer.errors import UserError
from sft_trainer.layout import REPLACED, STAGING, JobFolder


class Owner(Report):
    """The SFTJob's uid and the digest of its model, data and seed."""

    uid: str
    identity: str


class Action(Enum):
    """What to do with what lies there."""

    CONTINUE = "continue"  # ours, or the same training under a new uid, or nothing there yet
    MOVE_ASIDE = "move aside"  # another job's, and we are to start fresh


def decide(
    standing: Owner | None,
    mine: Owner,
    *,
    has_work: bool,
    on_existing: Literal["Resume", "Fail", "StartFresh"],
) -> Action:
    """What `mine` may do with a folder that `standing` owns and that has checkpoints or an export, or not.

    Raises:
        UserError: `onExisting` does not allow to go on.
    """
    if not has_work or standing == mine:
        return Action.CONTINUE
    if on_existing == "StartFresh":
        return Action.MOVE_ASIDE
    ways = (
        "use another metadata.name, or set checkpoint.onExisting to StartFresh (the old ones are moved aside)"
    )
    if standing is None or standing.identity != mine.identity:
        raise UserError(
            "CheckpointsOfAnotherJob",
            "the job folder holds checkpoints of another training (other model, data or seed): "
            f"{ways}, or restore the earlier model and data",
        )
    if on_existing == "Fail":
        raise UserError(
            "CheckpointsOfAnotherJob",
            "the job folder holds checkpoints of an earlier job of this name and checkpoint.onExisting is "
            f"Fail: {ways}, or to Resume, which continues them",
        )
    return Action.CONTINUE


def read(path: Path) -> Owner | None:
    """The owner of record; None where there is none, or one that cannot be read."""
    try:
        return Owner.model_validate_json(path.read_bytes())
    except (FileNotFoundError, ValidationError):
        return None


def judge(folder: JobFolder, mine: Owner, on_existing: Literal["Resume", "Fail", "StartFresh"]) -> Action:
    """`decide` for what lies in `folder`; changes nothing.

    Raises:
        UserError: see `decide`.
    """
    return decide(read(folder.owner), mine, has_work=_has_work(folder), on_existing=on_existing)


def _has_work(folder: JobFolder) -> bool:
    whole = ("step-*", f"{STAGING}*{REPLACED}")  # see resume.remove_staged
    return folder.export.exists() or any(any(folder.checkpoints.glob(one)) for one in whole)


def take(folder: JobFolder, mine: Owner, action: Action, now: str) -> None:
    """Make the folder ours; `now` (sortable, no colons) names what is moved aside."""
    standing = read(folder.owner)
    folder.root.mkdir(parents=True, exist_ok=True)
    leaves: tuple[Path, ...] = ()
    if action is Action.MOVE_ASIDE:
        leaves = (folder.export, folder.report, folder.checkpoints)  # checkpoints last: they decide
    elif standing is not None and standing.uid != mine.uid and not _has_work(folder):
        leaves = (folder.report,)  # nothing of that job is gone on from: its story is not ours
    suffix = f"{now}-{standing.uid[:8] if standing else 'unknown'}"
    for path in leaves:
        if path.exists():
            path.rename(path.with_name(f"{path.name}.{suffix}"))
    if leaves:
        sync_directory(folder.root)
    if standing != mine:
        write_atomically(folder.owner, mine.to_json(indent=2))
