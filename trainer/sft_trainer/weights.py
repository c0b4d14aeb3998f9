"""What a folder's safetensors files hold, from their headers alone: names and shapes, no weight is read.

The header is eight bytes of length and that much JSON
(https://github.com/huggingface/safetensors#format), and it says how long the file has to be: an
interrupted download is noticed here and not on the GPUs.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from sft_trainer import layout
from sft_trainer.errors import UserError

INDEX = "model.safetensors.index.json"
EMBEDDING = re.compile(r"(^|\.)(embed_tokens|wte|word_embeddings|embed_in|tok_embeddings)\.weight$")
HEAD = re.compile(r"(^|\.)(lm_head|embed_out|output)\.weight$")
VOCABULARY = re.compile(f"{EMBEDDING.pattern}|(^|\\.)(lm_head|embed_out|output)\\.(weight|bias)$")
_MAX_HEADER = 100 << 20  # as in the reference implementation
_SAMPLES, _SAMPLE_BYTES = 64, 64 << 10  # per file, evenly spread, the first and last bytes included
_PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt")


def shapes(directory: Path) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor by name. UserError WeightsMissing or WeightsDamaged names file and fix."""
    found: dict[str, tuple[int, ...]] = {}
    for path in files(directory):
        for name, entry in header(path).items():
            if name != "__metadata__":
                found[name] = tuple(entry["shape"])
    return found


def files(directory: Path) -> list[Path]:
    """The safetensors files that make up the model, in order."""
    index = directory / INDEX
    if index.is_file():
        try:
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (ValueError, KeyError, AttributeError) as exc:
            raise UserError(
                "WeightsDamaged", f"{layout.shown(directory)}/{INDEX} cannot be read: {exc}"
            ) from exc
        missing = [name for name in names if not (directory / name).is_file()]
        if missing:
            raise UserError(
                "WeightsMissing",
                f"the model {layout.shown(directory)} lacks {missing[0]} "
                f"({len(missing)} of {len(names)} weight files are missing); copy it into the folder",
            )
        return [directory / name for name in names]
    single = directory / "model.safetensors"
    if single.is_file():
        return [single]
    raise UserError("WeightsMissing", _none(directory))


def fingerprint(directory: Path) -> str:
    """Hash over configuration, headers and samples of the weights, 12 hex characters.

    Training changes every weight, so a sample tells models apart in a second where reading all would take
    minutes; times of files are left out, because a copy is the same model.
    """
    digest = hashlib.sha256((directory / "config.json").read_bytes())
    for path in files(directory):
        size = path.stat().st_size
        digest.update(f"{path.name} {size} {json.dumps(header(path), sort_keys=True)}".encode())
        with path.open("rb") as stream:
            for number in range(_SAMPLES):
                stream.seek((size - _SAMPLE_BYTES) * number // (_SAMPLES - 1) if size > _SAMPLE_BYTES else 0)
                digest.update(stream.read(_SAMPLE_BYTES))
    return digest.hexdigest()[:12]


def of_the_vocabulary(path: Path, size: int) -> list[str]:
    """Names of the tensors in `path` that have `size` rows, one per token: embedding, head and its bias."""
    return [
        name
        for name, entry in header(path).items()
        if name != "__metadata__" and VOCABULARY.search(name) and entry["shape"][:1] == [size]
    ]


def header_length(path: Path) -> int:
    """Bytes of the header, without the eight that say so."""
    with path.open("rb") as stream:
        return int.from_bytes(stream.read(8), "little")


def header(path: Path) -> dict[str, Any]:
    """What `path` holds: dtype, shape and data_offsets of each tensor, and perhaps __metadata__.

    Raises:
        UserError: WeightsDamaged.
    """
    size = path.stat().st_size
    with path.open("rb") as stream:
        start = stream.read(8)
        length = int.from_bytes(start, "little")
        if len(start) < 8 or length > min(_MAX_HEADER, size):
            raise UserError("WeightsDamaged", _damaged(path, start))
        try:
            header: dict[str, Any] = json.loads(stream.read(length))
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        except (ValueError, KeyError, TypeError) as exc:
            raise UserError("WeightsDamaged", _damaged(path, start)) from exc
    if size != 8 + length + max(ends, default=0):
        raise UserError(
            "WeightsDamaged",
            f"{layout.shown(path)} has {size:,} bytes, its header says "
            f"{8 + length + max(ends, default=0):,}; copy it again (an interrupted download?)",
        )
    return header


def _damaged(path: Path, start: bytes) -> str:
    if start.startswith(b"version "):
        return f"{layout.shown(path)} is a Git LFS pointer, not the weights; run `git lfs pull` there"
    return f"{layout.shown(path)} is not a safetensors file; copy it again"


def _none(directory: Path) -> str:
    pickled = sorted(path.name for pattern in _PICKLED for path in directory.glob(pattern))
    if pickled:
        return (
            f"the model {layout.shown(directory)} has only pickled weights ({pickled[0]}), "
            "which can run code when loaded; convert them with transformers' save_pretrained"
        )
    ggufs = sorted(path.name for path in directory.glob("*.gguf"))
    if ggufs:
        return f"the folder {layout.shown(directory)} holds {ggufs[0]}; name the file itself in model.path"
    return (
        f"the model {layout.shown(directory)} has no weights (model.safetensors); copy them into the folder"
    )
