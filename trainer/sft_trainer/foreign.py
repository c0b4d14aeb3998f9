"""Files of a model's folder, which a stranger wrote: bounded in size, and one sentence for whatever they hold instead.

Python's JSON reader takes twenty times the memory of a text and as many frames as it is nested, so a limit on the bytes
is one on both; the largest files known are a tenth of the limits.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sft_trainer import layout
from sft_trainer.errors import UserError

MEBIBYTE = 1 << 20
NO_CODE = {"trust_remote_code": False}
NO_CODE_NO_PICKLES = {**NO_CODE, "use_safetensors": True}
"""For from_pretrained of transformers, which asks on the terminal where it is not told."""
DOCUMENT = 16 * MEBIBYTE
"""config.json and its like, an index of weights, a chat template."""


def content(path: Path, reason: str, limit: int = DOCUMENT) -> bytes:
    """The bytes of `path`; UserError `reason` if they are more than `limit`."""
    size = path.stat().st_size
    if size > limit:
        raise UserError(
            reason,
            f"{layout.shown(path)} has {size >> 20:,} MiB, at most {limit >> 20} are read: "
            "replace it by the file of the model",
        )
    return path.read_bytes()


def text(path: Path, reason: str) -> str:
    """The text of `path`; UserError `reason` if it is none."""
    try:
        return content(path, reason).decode("utf-8")
    except UnicodeDecodeError as exc:
        raise UserError(
            reason, f"{layout.shown(path)} is not UTF-8 at byte {exc.start + 1}: save it as UTF-8"
        ) from exc


def parsed(document: str | bytes) -> Any:
    """JSON; ValueError for all that Python's reader may say of a hostile text."""
    try:
        return json.loads(document)
    except RecursionError:
        raise ValueError("lists or objects are nested too deeply to be read") from None


def document(path: Path, reason: str) -> Any:
    """The JSON of `path`; UserError `reason` if it is none."""
    words = text(path, reason)
    try:
        return parsed(words)
    except ValueError as exc:
        # Of too many digits Python says, behind a semicolon, which of its functions raises the limit.
        said = str(exc).partition(";")[0]
        raise UserError(
            reason, f"{layout.shown(path)} is not valid JSON: {said}; copy it from the model again"
        ) from exc


def confined(folder: Path, workspace: Path, reason: str) -> None:
    """UserError `reason` if a link in `folder` leads out of the workspace, to what the pod alone can see."""
    root = workspace.resolve()
    for path in (*folder.iterdir(), *folder.glob("*/*")):
        if path.is_symlink() and not path.resolve().is_relative_to(root):
            raise UserError(
                reason,
                f"{layout.shown(path)} is a link that leaves the workspace; put the file itself in its place",
            )
