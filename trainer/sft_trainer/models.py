"""From the job's `model` to a folder on the volume that every rank can load."""

from __future__ import annotations

import logging
from pathlib import Path

from sft_trainer import facts, foreign, gguf, hub, layout, vocabulary, weights
from sft_trainer.config import ModelFacts, ModelSource
from sft_trainer.errors import UserError
from sft_trainer.remote import s3, sources

logger = logging.getLogger(__name__)


def resolve(source: ModelSource, workspace: Path) -> ModelFacts:
    """Fetch or convert the model where needed and read its facts; UserError says what is wrong with it."""
    if source.uri is not None and source.uri.startswith(s3.SCHEME):
        directory, resolved = _from_store(source.uri, workspace)
    elif source.uri is not None:
        directory, resolved = hub.fetch(source.uri, workspace)
    else:
        directory, resolved = _from_path(source.path or "", workspace)
    extended = vocabulary.Extended(directory)
    if source.add_tokens:
        facts.model_facts(directory, resolved, "")  # what is wrong with the model itself is said first
        extended = vocabulary.extend(directory, source.add_tokens, workspace)
        directory, resolved = extended.directory, f"{resolved}{extended.suffix}"
    found = facts.model_facts(directory, resolved, directory.relative_to(workspace).as_posix())
    found = found.model_copy(update={"added_tokens": extended.tokens})
    logger.info("model %s: %s, %.1f M parameters", resolved, found.architecture, found.parameters / 1e6)
    return found


def _from_store(uri: str, workspace: Path) -> tuple[Path, str]:
    directory, resolved = sources.model(uri, workspace)
    ggufs = sorted(directory.glob("*.gguf"))
    if not ggufs or (directory / "config.json").is_file():
        return directory, resolved
    if len(ggufs) > 1:
        raise UserError("ModelNotFound", f"model.uri: {uri} has {len(ggufs)} .gguf files: name one of them")
    return gguf.convert(ggufs[0], workspace)[0], resolved


def _from_path(path: str, workspace: Path) -> tuple[Path, str]:
    try:
        place = layout.within(workspace, path)
    except ValueError as exc:
        raise UserError("ModelNotFound", f"model.path: {exc}; paths are relative to it") from exc
    if place.is_dir():
        foreign.confined(place, workspace, "ModelNotFound")
        facts.read_config(place)
        return place, f"{path}@{weights.fingerprint(place)}"
    if not place.is_file():
        raise UserError(
            "ModelNotFound", f"model.path: {path} was not found in the workspace; {_beside(place, workspace)}"
        )
    if place.suffix.lower() != ".gguf":
        raise UserError("ModelNotFound", f"model.path: {path} is neither a folder nor a .gguf file")
    directory, digest = gguf.convert(place, workspace)
    return directory, f"{path}@sha256:{digest[:16]}"


def _beside(place: Path, workspace: Path) -> str:
    folder = place.parent
    while not folder.is_dir() and folder != workspace:
        folder = folder.parent
    names = sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith("."))
    where = "the workspace" if folder == workspace else f"{folder.relative_to(workspace).as_posix()}/"
    return f"{where} holds {', '.join(names[:8]) or 'nothing'}"
