"""`python -m sft_trainer prepare`: everything that can be done and can go wrong before a GPU is taken.

Fetches or converts the model, reads its facts, validates and tokenises the data into the cache, and
reports it all in the termination message. Running it again is cheap: what is already on the volume is
verified and reused.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from pydantic import ValidationError

from sft_trainer import facts, layout, models, outcome, tidying, uses, weights
from sft_trainer.checkpoint.files import write_atomically
from sft_trainer.config import (
    COLLECT_FILE,
    ENV_CONFIG,
    PREPARE_FILE,
    SCHEMA_VERSION,
    DataSource,
    ExitCode,
    ModelFacts,
    Outcome,
    PrepareConfig,
    Prepared,
    PrepareResult,
)
from sft_trainer.data import build, tokenizer
from sft_trainer.data.ending import ending
from sft_trainer.data.ingest import Recipe
from sft_trainer.data.template import ChatTemplate
from sft_trainer.errors import Crash, Interrupted, TrainerError, UserError, classify

logger = logging.getLogger(__name__)

_CLEAN_UP_SECONDS = 10.0  # well within a pod's grace period


def main() -> int:
    """Prepare what $SFTJOB_CONFIG/prepare.json describes in $SFTJOB_WORKSPACE; returns the exit code."""
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    logging.getLogger("sft_trainer").setLevel(logging.INFO)
    try:
        with _interruptible():
            settings, workspace = read_config(_config_folder() / PREPARE_FILE), _workspace()
            folder = layout.JobFolder.of(workspace, settings.job.name)
            uses.touch(folder.prepared)  # of an earlier job of this name, whose checkpoints it may go on from
            result = prepare(settings, workspace)
            _remember(settings, result, folder)
    except Exception as exc:
        return _fail(classify(exc))
    message = f"{result.data.rows:,} rows, {result.data.supervised_tokens:,} supervised tokens"
    outcome.write_outcome(
        Outcome(outcome="Succeeded", reason="Succeeded", message=message, time=outcome.now(), prepare=result)
    )
    tidying.tidy(_config_folder() / COLLECT_FILE, workspace, settings.job)
    return int(ExitCode.SUCCESS)


def _remember(settings: PrepareConfig, result: PrepareResult, folder: layout.JobFolder) -> None:
    """Leave for the report where the data came from; without it the report says less."""
    held_out = settings.data.eval
    shown = settings.data.model_copy(
        update={
            "train": [_without_rows(source) for source in settings.data.train],
            "eval": held_out
            and held_out.model_copy(update={"sources": [_without_rows(one) for one in held_out.sources]}),
        }
    )
    prepared = Prepared(config=settings.model_copy(update={"data": shown}), result=result)
    try:
        folder.root.mkdir(parents=True, exist_ok=True)
        write_atomically(folder.prepared, prepared.to_json(indent=1))
    except OSError as exc:
        logger.warning("%s was not written: %s", folder.prepared.name, exc)


def _without_rows(source: DataSource) -> DataSource:
    return source if source.inline is None else source.model_copy(update={"inline": ""})


def _fail(error: TrainerError) -> int:
    if isinstance(error, Crash):
        logger.error("preparation failed", exc_info=True)
    logger.error("%s: %s", error.reason, error.message)
    outcome.write_outcome(outcome.failed(error))
    return int(error.exit_code)


def prepare(config: PrepareConfig, workspace: Path) -> PrepareResult:
    """Model and data of `config`, ready on the volume; TrainerError if that cannot be."""
    started = time.monotonic()
    model = models.resolve(config.model, workspace)
    model = _without_frozen(model, config, workspace)
    _check_length(config, model)
    directory = workspace / model.directory
    words = tokenizer.Tokenizer(directory)
    template = tokenizer.chat_template(directory, words, config.model.chat_template, workspace)
    _warn_of_answers_without_end(template)
    data = build.build(Recipe(config.data, words, template, model.vocabulary_size), workspace)
    logger.info(
        "prepared in %.1f s: %s rows, %s tokens (%s supervised), %d truncated, %d dropped, %d too short, %d skipped, "
        "%d duplicates; %s sequences of %d, %d %% full",
        time.monotonic() - started,
        f"{data.rows:,}",
        f"{data.tokens:,}",
        f"{data.supervised_tokens:,}",
        data.truncated_rows,
        data.dropped_rows,
        data.short_rows,
        data.skipped_rows,
        data.duplicate_rows,
        f"{data.packs:,}",
        config.data.max_length,
        data.fill_percent,
    )
    return PrepareResult(model=model, data=data)


def _without_frozen(model: ModelFacts, config: PrepareConfig, workspace: Path) -> ModelFacts:
    """The facts with how much is trained, where something is frozen."""
    if not config.freezing:
        return model
    shapes = weights.shapes(workspace / model.directory)
    trained = facts.trained_parameters(shapes, model.tied_embeddings, config.freezing)
    return model.model_copy(update={"trained_parameters": trained})


def read_config(path: Path) -> PrepareConfig:
    """prepare.json; UserError InvalidConfig says which field is wrong, or that its version is another's."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as exc:
        raise UserError("InvalidConfig", f"{path.name} cannot be read: {exc}") from exc
    version = document.get("schemaVersion", SCHEMA_VERSION) if isinstance(document, dict) else None
    if version != SCHEMA_VERSION:
        raise UserError(
            "InvalidConfig",
            f"{path.name} has schemaVersion {version}, this trainer knows {SCHEMA_VERSION}; "
            "use the trainer image of the operator's release (spec.workers.image)",
        )
    try:
        return PrepareConfig.model_validate(document)
    except ValidationError as exc:
        first = exc.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "the document"
        raise UserError("InvalidConfig", f"{path.name}: {where}: {first['msg']}") from exc


def _check_length(config: PrepareConfig, model: ModelFacts) -> None:
    if model.max_positions is not None and config.data.max_length > model.max_positions:
        raise UserError(
            "MaxLengthTooLong",
            f"data.maxLength is {config.data.max_length}, the model has {model.max_positions} positions; "
            f"set data.maxLength to {model.max_positions} or less",
        )


def _warn_of_answers_without_end(template: ChatTemplate) -> None:
    """The data cannot mend that; whoever wonders why the model talks on finds it in the log."""
    known = ending(template)
    if known is None or known.stops:
        return
    where = (
        "behind the last answer only" if any(t in known.last for t in template.tokens) else "behind no answer"
    )
    logger.warning(
        "the chat template writes a special token %s, and it is where that stands that a model learns to stop; "
        "set model.chatTemplate to a template which ends every answer with one (preset: ChatML does)",
        where,
    )


def _config_folder() -> Path:
    folder = os.environ.get(ENV_CONFIG)
    if not folder:
        raise UserError("InvalidEnvironment", f"{ENV_CONFIG} is not set; the operator sets it in every pod")
    return Path(folder)


def _workspace() -> Path:
    try:
        return layout.workspace()
    except KeyError as exc:
        raise UserError(
            "InvalidEnvironment", f"{exc.args[0]} is not set; the operator sets it in every pod"
        ) from exc


@contextmanager
def _interruptible() -> Iterator[None]:
    """SIGTERM ends the preparation as Interrupted; PID 1 would ignore it otherwise."""
    stopped = Interrupted("stopped by SIGTERM; what is finished is kept, the next run goes on from there")
    leave = threading.Timer(_CLEAN_UP_SECONDS, lambda: os._exit(_fail(stopped)))
    leave.daemon = True  # downloads in other threads would keep the process alive until it is killed

    def interrupt(number: int, frame: FrameType | None) -> None:
        if not leave.is_alive():
            leave.start()
            raise stopped

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        leave.cancel()
        signal.signal(signal.SIGTERM, before)
