"""`python -m sft_trainer train`: one rank, from its configuration to its exit code.

Whatever happens inside, a rank leaves a final marker that says how it ended; the launcher turns the markers
of its ranks into the termination message.
"""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path

from pydantic import ValidationError

from sft_trainer import config
from sft_trainer.config import ExitCode, Outcome, TrainConfig
from sft_trainer.errors import TrainerError, UserError, classify
from sft_trainer.outcome import failed, now, write_outcome
from sft_trainer.reporting import Journal
from sft_trainer.run_folder import RunFolder

logger = logging.getLogger(__name__)


def main() -> int:
    """Train as this rank; returns the exit code."""
    rank = int(os.environ.get("RANK", "0"))
    _log_to_stderr(rank)
    journal = Journal()
    try:
        outcome = _succeeded(rank, journal)
    except BaseException as error:  # also SystemExit and KeyboardInterrupt: the marker must be written
        failure = _classified(error)
        if failure.exit_code is ExitCode.CRASH and failure.reason == "Crash":
            logger.exception("training failed")
        else:
            logger.error("%s: %s", failure.reason, failure.message)
        outcome = failed(failure, **_common(rank, journal))
    marker = RunFolder.from_environment().marker(rank)
    marker.parent.mkdir(parents=True, exist_ok=True)
    write_outcome(outcome, marker)
    return outcome.exit_code


def _succeeded(rank: int, journal: Journal) -> Outcome:
    parsed = _config(Path(os.environ[config.ENV_CONFIG]) / config.TRAIN_FILE)
    # Only now, because it takes torch, transformers and deepspeed, whose import reads the environment.
    from sft_trainer.distributed import prepare_environment

    prepare_environment(parsed.topology.accelerator)
    from sft_trainer.assemble import run

    result = run(parsed, journal)
    return Outcome.model_validate(
        {
            "outcome": "Succeeded",
            "reason": "Succeeded",
            "time": now(),
            "train": result if rank == 0 else None,
            **_common(rank, journal),
        }
    )


def _common(rank: int, journal: Journal) -> dict[str, object]:
    return {
        "rank": rank,
        "last_step": journal.last_step,
        "last_verified_step": journal.last_verified_step,
        "resumed_from_step": journal.resumed_from_step,
        "checkpoints": journal.checkpoints if rank == 0 else [],
    }


def _config(path: Path) -> TrainConfig:
    """The configuration in `path`.

    Raises:
        UserError: it is of another version of the contract, or not valid.
    """
    try:
        return TrainConfig.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UserError(
            "InvalidTrainConfig",
            f"{path.name}, {where}: {first['msg']}; operator and trainer image are of different versions",
        ) from error


def _classified(error: BaseException) -> TrainerError:
    distributed = sys.modules.get("sft_trainer.distributed")
    known = distributed.communication_failure(error) if distributed else None
    if isinstance(known, TrainerError):
        return known
    return classify(error)


def _log_to_stderr(rank: int) -> None:
    logging.basicConfig(
        level=logging.INFO if rank == 0 else logging.WARNING,
        format=f"%(asctime)s {'' if rank == 0 else f'rank {rank} '}%(message)s",
        datefmt="%H:%M:%S",
        stream=sys.stderr,
    )
    logging.captureWarnings(True)
    for noisy in ("DeepSpeed", "transformers", "torch", "py.warnings", "accelerate", "peft"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
