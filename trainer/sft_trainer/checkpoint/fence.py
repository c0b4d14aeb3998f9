"""Which run may commit to the volume: the last one started.

A rank on a cut-off node, or an old run after a suspension, may still be computing when its successor trains.
It finds out before it commits: the fence names another run.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from sft_trainer.checkpoint.files import write_atomically
from sft_trainer.config import Report
from sft_trainer.errors import Fenced


class Fence(Report):
    """A run of an attempt of the SFTJob `uid`.

    `started` (RFC 3339) is for people: the clocks of nodes differ too much to decide by it.
    """

    uid: str
    attempt: int
    started: str
    run_id: str


def read(path: Path) -> Fence | None:
    """The fence that stands; None where there is none, or one that cannot be read."""
    try:
        return Fence.model_validate_json(path.read_bytes())
    except (FileNotFoundError, ValidationError):
        return None


def claim(path: Path, mine: Fence) -> None:
    """Put up `mine`. A run of the same attempt, or of an earlier SFTJob, is replaced: this one started later.

    Raises:
        Fenced: a newer attempt stands there.
    """
    standing = read(path)
    if standing is not None and standing.uid == mine.uid and standing.attempt > mine.attempt:
        raise Fenced(
            f"attempt {standing.attempt} started at {standing.started} and owns the volume; this is attempt "
            f"{mine.attempt}, which ends without touching anything"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, mine.to_json(indent=2))


def check(path: Path, mine: Fence) -> None:
    """Nothing when `mine` still stands.

    Raises:
        Fenced: another run has taken over.
    """
    standing = read(path)
    if standing is None or standing.run_id != mine.run_id:
        other = (
            "no run" if standing is None else f"attempt {standing.attempt}, started at {standing.started},"
        )
        raise Fenced(f"{other} owns the volume now; this run of attempt {mine.attempt} commits nothing more")
