"""From `model.uri` and `data.train[].uri` to a folder of the workspace."""

from __future__ import annotations

from fnmatch import fnmatchcase
from pathlib import Path

from sft_trainer import layout
from sft_trainer.errors import UserError
from sft_trainer.hub import PATTERNS
from sft_trainer.remote import copy, https, s3
from sft_trainer.remote.listing import Listing, Remote


def model(uri: str, workspace: Path) -> tuple[Path, str]:
    """The copy of the model folder or .gguf file at s3://, and its exact source."""
    found = s3.find(uri, "model.uri")
    files = tuple(one for one in found.objects if _is_of_a_model(one))
    if not files:
        raise UserError(
            "SourceNotFound",
            f"model.uri: {uri} holds no model: neither a .gguf file nor config.json and .safetensors",
        )
    wanted = Listing(found.uri, found.field, files, found.read)
    entry = copy.copy(wanted, layout.model_cache(workspace))
    return entry, f"{uri.rstrip('/')}@{copy.digest(wanted)}"


def data(uri: str, field: str, prefix: str, suffixes: tuple[str, ...], workspace: Path) -> Path:
    """The folder with the copied files of a data source, by their names below it."""
    if uri.startswith(https.SCHEME):
        found = https.find(uri, field)
    else:
        found = s3.find(uri, field, prefix=prefix, suffixes=suffixes)
    if not found.objects:
        raise UserError("SourceNotFound", f"{field}: {uri} is nothing that ends with {', '.join(suffixes)}")
    return copy.copy(found, layout.source_cache(workspace))


def _is_of_a_model(one: Remote) -> bool:
    return "/" not in one.name and any(fnmatchcase(one.name, pattern) for pattern in (*PATTERNS, "*.gguf"))
