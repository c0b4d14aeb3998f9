"""Commits checkpoints: nothing is visible under its final name before every byte is on disk and read back.

The order is the guarantee: stage, save, barrier, flush and hash, manifest, fence, rename, pointer, prune. A
crash at any point leaves the previous checkpoint as it was and at most a staging directory, which the next
run removes. DeepSpeed's own `latest` file is written before the other ranks have finished and is not used.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sft_trainer.checkpoint import fence, manifest, state
from sft_trainer.checkpoint.fence import Fence
from sft_trainer.checkpoint.files import sync_directory, write_atomically
from sft_trainer.checkpoint.manifest import FileEntry, Manifest
from sft_trainer.checkpoint.state import TrainerState
from sft_trainer.config import CheckpointFact
from sft_trainer.distributed import World
from sft_trainer.engine import Engine
from sft_trainer.errors import VolumeFull, classify
from sft_trainer.layout import REPLACED, STAGING, JobFolder

logger = logging.getLogger(__name__)

ENGINE_TAG = "engine"  # subdirectory with DeepSpeed's files
POINTER = "latest.json"
_NOTHING_LEFT = 1 << 20  # bytes
_MARGIN = 1.05  # of the expected size, which must be free


@dataclass(frozen=True)
class Store:
    """The checkpoints of one job, as this run may write them."""

    folder: JobFolder
    fence: Fence
    keep_last: int
    keep_best: int = 0

    def commit(
        self, engine: Engine, saved: TrainerState, world: World, expected_bytes: int
    ) -> CheckpointFact:
        """Save the training as step-<N>; returns only when it is verified. Collective.

        Raises:
            VolumeFull: the volume has no room for `expected_bytes`; nothing was written.
            Fenced: a newer run owns the volume.
        """
        staging = self.folder.checkpoints / f"{STAGING}{self.fence.run_id}-step-{saved.step}"
        world.first(lambda: self._begin(staging, expected_bytes))
        try:
            return self._save(staging, engine, saved, world)
        except Exception as error:
            # A full volume should not stay full of what is worth nothing. Rank 0 may never notice that another
            # rank found it full; any other failure it has to notice itself, for it may be publishing.
            if world.is_first or isinstance(classify(error), VolumeFull):
                shutil.rmtree(staging, ignore_errors=True)
            raise

    def _save(self, staging: Path, engine: Engine, saved: TrainerState, world: World) -> CheckpointFact:
        # Adapters change, the frozen base does not: it is loaded from the model folder again.
        partial = any(not p.requires_grad for p in engine.module.parameters())
        # DeepSpeed lets all ranks wait among their computations for the one that writes the most.
        with naming_a_full_volume(staging.parent), world.patient():
            engine.save_checkpoint(
                str(staging), tag=ENGINE_TAG, save_latest=False, exclude_frozen_parameters=partial
            )
            state.save_random(staging, world.rank)
            if world.is_first:
                (staging / state.STATE).write_text(saved.to_json(indent=2), encoding="utf-8")
        world.barrier()
        mine = _hashed(staging, world.rank, saved.tensor_ranks)
        entries = [entry for share in world.gather(mine) for entry in share]
        return world.first(lambda: self._publish(staging, saved, Manifest(files=entries)))

    def _begin(self, staging: Path, expected_bytes: int) -> None:
        fence.check(self.folder.fence, self.fence)
        self.folder.checkpoints.mkdir(parents=True, exist_ok=True)
        require_space(self.folder.checkpoints, expected_bytes, "a checkpoint")
        staging.mkdir()

    def _publish(self, staging: Path, saved: TrainerState, listing: Manifest) -> CheckpointFact:
        listing = Manifest(files=sorted(listing.files, key=lambda entry: entry.path))
        write_atomically(staging / manifest.MANIFEST, listing.to_json(indent=1))
        sync_directory(staging / ENGINE_TAG)
        fence.check(self.folder.fence, self.fence)
        final = self.folder.checkpoints / f"step-{saved.step}"
        if final.exists():  # resumed before it, from an older one: replaced, never merged
            final.rename(staging.with_name(f"{staging.name}{REPLACED}"))
        staging.rename(final)
        sync_directory(self.folder.checkpoints)
        pointer = {"name": final.name, "step": saved.step}
        write_atomically(self.folder.checkpoints / POINTER, json.dumps(pointer))
        prune(self.folder.checkpoints, self.keep_last, self.keep_best)
        return fact(saved, listing.size)


def fact(saved: TrainerState, size: int) -> CheckpointFact:
    """What is said about a committed checkpoint in progress and outcome."""
    return CheckpointFact(
        name=f"step-{saved.step}",
        step=saved.step,
        attempt=saved.attempt,
        bytes=size,
        loss=saved.loss,
        eval_loss=saved.history.loss_at(saved.step),
        time=saved.time,
    )


def require_space(directory: Path, needed: int, what: str) -> None:
    """Nothing when `needed` bytes are free under `directory`.

    Raises:
        VolumeFull: they are not; the message says how many are missing.
    """
    free = shutil.disk_usage(directory).free
    if free < needed * _MARGIN:
        raise VolumeFull(
            f"{what} needs {_readable(needed)} and {_readable(free)} are free on the workspace volume; free "
            "space, enlarge the claim in spec.workspace, or lower checkpoint.retain"
        )


@contextmanager
def naming_a_full_volume(directory: Path) -> Iterator[None]:
    """Raises VolumeFull for a failure to write where `directory` has no space left: torch does not say why."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        if shutil.disk_usage(directory).free < _NOTHING_LEFT:
            raise VolumeFull(
                "the workspace volume became full while a checkpoint was written; the previous checkpoint is "
                "whole; free space or enlarge the claim in spec.workspace"
            ) from error
        raise


def _readable(size: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"


def _hashed(staging: Path, rank: int, tensor_ranks: int) -> list[FileEntry]:
    paths = {path.relative_to(staging).as_posix(): path for path in staging.rglob("*") if path.is_file()}
    mine = manifest.files_of_rank(sorted(paths), rank, tensor_ranks)
    return [manifest.entry(staging, paths[name]) for name in mine]


def steps(checkpoints: Path) -> list[int]:
    """Steps of the directories that look like committed checkpoints, newest first."""
    names = (path.name.removeprefix("step-") for path in checkpoints.glob("step-*"))
    return sorted((int(name) for name in names if name.isdigit()), reverse=True)


def best_steps(checkpoints: Path) -> list[int]:
    """Steps of the checkpoints that were evaluated as they were made, the lowest loss first."""
    found = (state.read(checkpoints / f"step-{step}") for step in steps(checkpoints))
    losses = {saved.step: saved.history.loss_at(saved.step) for saved in found if saved is not None}
    ranked = sorted((loss, step) for step, loss in losses.items() if loss is not None)
    return [step for _, step in ranked]


def prune(checkpoints: Path, keep_last: int, keep_best: int = 0) -> None:
    """Remove all checkpoints but the newest `keep_last` (at least one) and the `keep_best` with the lowest
    evaluation loss, and what earlier runs left staged.
    """
    newest_first = steps(checkpoints)
    kept = {*newest_first[: max(1, keep_last)], *(best_steps(checkpoints)[:keep_best] if keep_best else ())}
    _remove(checkpoints / f"step-{step}" for step in newest_first if step not in kept)
    _remove(checkpoints.glob(f"{STAGING}*"))


def _remove(directories: Iterable[Path]) -> None:
    for directory in directories:
        doomed = directory
        if not directory.name.startswith("."):  # half a checkpoint must not keep a checkpoint's name
            doomed = directory.with_name(f"{STAGING}removed-{directory.name}")
            directory.rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)
        if doomed.exists():
            logger.warning("could not remove %s completely; the next run tries again", doomed.name)
