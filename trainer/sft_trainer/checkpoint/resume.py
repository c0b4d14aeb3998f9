"""Which checkpoint a run continues: the newest one that is whole, or none."""

from __future__ import annotations

import functools
import logging
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from sft_trainer import optimizers
from sft_trainer.batches import Plan
from sft_trainer.checkpoint import as_saved, manifest, reshard, state
from sft_trainer.checkpoint.commit import ENGINE_TAG, fact, steps
from sft_trainer.checkpoint.files import sync_directory
from sft_trainer.checkpoint.state import TrainerState
from sft_trainer.config import CheckpointFact, TrainConfig
from sft_trainer.distributed import World
from sft_trainer.engine import Engine
from sft_trainer.errors import Crash, TrainerError, UserError
from sft_trainer.layout import REPLACED, STAGING, shown

logger = logging.getLogger(__name__)

_GATHERS = ("checkpoint_event_epilogue", "update_lp_params")  # of DeepSpeed's optimizers: collectives


class Found(NamedTuple):
    """A checkpoint whose sizes and sampled hashes are those of its manifest."""

    directory: Path
    state: TrainerState
    size: int


def newest_whole(checkpoints: Path) -> Found | None:
    """The newest whole checkpoint; None where there are none at all.

    Broken ones that are newer are named in the log and set aside.

    Raises:
        UserError: there are checkpoints and none is whole, or the newest is of a newer trainer's format.
        OSError: the volume fails; nothing was renamed.
    """
    broken: dict[Path, str] = {}
    for step in steps(checkpoints):
        directory = checkpoints / f"step-{step}"
        wrong = manifest.problem(directory)
        saved = state.read(directory)
        if wrong is None and saved is not None:
            require_known_format(saved)
            for path, reason in broken.items():
                set_aside(path, reason)
            return Found(directory, saved, size_of(directory))
        broken[directory] = wrong or "its state cannot be read"
    if broken:
        raise no_whole_checkpoint(checkpoints, broken)
    return None


def best(checkpoints: Path, step: int) -> Found:
    """The checkpoint of the best evaluation, which was after `step` steps.

    Raises:
        UserError: it is gone, or not whole.
    """
    directory = checkpoints / f"step-{step}"
    wrong, saved = manifest.problem(directory), state.read(directory)
    if wrong is not None or saved is None:
        raise UserError(
            "BestCheckpointLost",
            f"the best checkpoint, {shown(directory)}, cannot be exported ({wrong or 'its state cannot be read'}): "
            "restore it, or create the SFTJob anew with export.checkpoint: Last, which exports the last one",
        )
    return Found(directory, saved, size_of(directory))


def no_whole_checkpoint(checkpoints: Path, broken: dict[Path, str]) -> UserError:
    """What is said where going on would mean starting over; `broken` from the newest on, with reasons."""
    newest, reason = next(iter(broken.items()))
    return UserError(
        "NoWholeCheckpoint",
        f"none of the {len(broken)} checkpoints in {shown(checkpoints)} is whole ({newest.name}: {reason}): "
        "restore one, or give the training up by removing that folder, or by creating the SFTJob anew with "
        "checkpoint.onExisting: StartFresh",
    )


def require_known_format(saved: TrainerState) -> None:
    """Nothing when this trainer can continue what was written.

    Raises:
        UserError: a newer trainer wrote it in another format.
    """
    if saved.schema_version > state.STATE_VERSION:
        raise UserError(
            "CheckpointTooNew",
            f"step-{saved.step} was written by a newer trainer (format {saved.schema_version}, this one knows "
            f"{state.STATE_VERSION}): use the trainer image that wrote it, in spec.workers.image",
        )


def set_aside(directory: Path, reason: str) -> None:
    """Take a broken checkpoint out of the way; it keeps its bytes, for whoever wants to look."""
    logger.warning("checkpoint %s is not used: %s", directory.name, reason)
    directory.rename(directory.with_name(f"broken-{directory.name}-{time.time_ns()}"))


def size_of(directory: Path) -> int:
    """Bytes that the manifest of a checkpoint lists."""
    listing = manifest.read(directory)
    return listing.size if listing else 0


def facts(checkpoints: Path) -> list[CheckpointFact]:
    """The checkpoints that lie there, oldest first."""
    found = ((checkpoints / f"step-{step}") for step in reversed(steps(checkpoints)))
    return [fact(saved, size_of(path)) for path in found if (saved := state.read(path)) is not None]


def remove_staged(checkpoints: Path) -> None:
    """Remove what a run that died while saving has left, but for a checkpoint that nothing has replaced yet."""
    for path in checkpoints.glob(f"{STAGING}*{REPLACED}"):
        name = path.name.removesuffix(REPLACED).removeprefix(STAGING).partition("-")[2]
        if not (checkpoints / name).exists():
            logger.info("putting %s back: the run that was to replace it ended before it had", name)
            path.rename(checkpoints / name)
            sync_directory(checkpoints)
    for path in checkpoints.glob(f"{STAGING}*"):
        logger.info("removing %s, left by a run that ended while saving", path.name)
        shutil.rmtree(path, ignore_errors=True)


def require_known_stage(saved: TrainerState, config: TrainConfig) -> None:
    """Nothing when this gang can continue `saved`: the number of ranks may differ, and ZeRO stages 1 to 3.

    Raises:
        UserError: one of the two does not partition anything, and the other does.
    """
    stage = config.deepspeed.zero_stage
    if (saved.zero_stage == 0) != (stage == 0):
        raise UserError(
            "ZeROStageChanged",
            f"step-{saved.step} was saved with ZeRO stage {saved.zero_stage} and this run has {stage}: set "
            f"deepspeed.zeroStage to {saved.zero_stage if saved.zero_stage == 0 else '1, 2 or 3'}",
        )


def require_same_optimizer(saved: TrainerState, config: TrainConfig) -> None:
    """Nothing when this run's optimizer can go on from the state in `saved`.

    Raises:
        UserError: it is another's.
    """
    mine = optimizers.family(config)
    if saved.optimizer != mine:
        raise UserError(
            "OptimizerChanged",
            f"step-{saved.step} was saved with the optimizer state of {saved.optimizer} and this run has {mine}: set "
            "training.optimizer.type and training.masterWeights back, or start under another metadata.name",
        )


def require_same_shares(saved: TrainerState, config: TrainConfig) -> None:
    """Nothing when each rank of this run has a share of the layers that a rank had which wrote `saved`.

    Raises:
        UserError: they were cut into another number of parts.
    """
    mine = config.deepspeed.tensor_parallel_size
    if saved.tensor_ranks != mine:
        raise UserError(
            "TensorParallelChanged",
            f"step-{saved.step} was saved with deepspeed.tensorParallelSize {saved.tensor_ranks} and this run has {mine}: "
            "set it back, or start under another metadata.name",
        )


def require_same_batches(saved: TrainerState, plan: Plan) -> None:
    """Nothing when `plan` reads on where `saved` stopped.

    Raises:
        UserError: its steps read other rows, or it has fewer steps than are done.
    """
    if saved.global_batch_size != plan.global_batch:
        raise UserError(
            "BatchesChanged",
            f"step-{saved.step} was saved with training.globalBatchSize {saved.global_batch_size} and this run has "
            f"{plan.global_batch}, so rows would be read twice or never: set it back, or start under another "
            "metadata.name",
        )
    if saved.batches != plan.digest:
        raise UserError(
            "BatchesChanged",
            f"step-{saved.step} was saved with other rows, data.maxLength, data.packing or training.seed, so rows "
            "would be read twice or never: set them back, or start under another metadata.name",
        )
    if saved.step > plan.total_steps:
        raise UserError(
            "CheckpointBeyondEnd",
            f"step-{saved.step} lies beyond the end of this training, which has {plan.total_steps} steps: raise "
            "training.epochs, maxSteps or maxTokens, or start under another metadata.name",
        )


def load(engine: Engine, found: Found, world: World, tensor_ranks: int = 1) -> None:
    """Put the training where `found` left it, random generators included. Collective.

    The generators of another number of ranks start anew, from seed, step and rank. Of layers that `tensor_ranks` ranks
    have between them each goes on with its own share.

    Raises:
        Crash: it cannot be loaded. Where that is because of bytes between the sampled ones it was set aside.
        UserError: so it is, and there is no older one.
    """
    saved = found.state
    same_size = saved.world_size == world.size
    try:
        with waiting_for_the_slowest(engine.optimizer, world.barrier):
            if saved.zero_stage > 0 and not (
                same_size and saved.zero_stage == engine.zero_optimization_stage()
            ):
                files, (group, share) = found.directory / ENGINE_TAG, divmod(world.rank, tensor_ranks)
                parts = reshard.read(files, saved.world_size // tensor_ranks, saved.zero_stage, share)
                reshard.load(engine, parts, group)
                engine.global_steps = saved.step
            else:
                as_saved.load(engine, found.directory)
        if same_size:
            state.load_random(found.directory, world.rank)
        else:
            state.seed_random(saved.seed, saved.step, world.rank // tensor_ranks)
    except Exception as error:
        if (wrong := manifest.problem(found.directory, every_byte=True)) is not None:
            raise _damaged(found, wrong) from error
        raise
    world.barrier()


@contextmanager
def waiting_for_the_slowest(optimizer: Any, wait: Callable[[], None]) -> Iterator[None]:
    """Meanwhile DeepSpeed gathers only after `wait`: its groups give a rank up that reads for ten minutes longer."""

    def after(gather: Callable[[], None]) -> None:
        wait()
        gather()

    found = [name for name in _GATHERS if hasattr(optimizer, name)]
    for name in found:
        setattr(optimizer, name, functools.partial(after, getattr(optimizer, name)))
    try:
        yield
    finally:
        for name in found:
            delattr(optimizer, name)


def other_size(saved: TrainerState, world: World) -> str:
    """Words for the log where another number of ranks goes on; else none."""
    return "" if saved.world_size == world.size else f", written by {saved.world_size} ranks, by {world.size}"


def _damaged(found: Found, wrong: str) -> TrainerError:
    """Some ranks have loaded what others cannot: it takes a new attempt, which finds an older checkpoint."""
    checkpoints = found.directory.parent
    if not any(step < found.state.step for step in steps(checkpoints)):
        return no_whole_checkpoint(checkpoints, {found.directory: wrong})
    with suppress(FileNotFoundError):  # another rank was faster
        set_aside(found.directory, wrong)
    return Crash(
        f"checkpoint {found.directory.name} is damaged ({wrong}); the next attempt continues from an older one",
        "CheckpointNotLoadable",
    )
