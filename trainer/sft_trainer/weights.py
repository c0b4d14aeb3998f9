"""What a folder's safetensors files hold, from their headers alone: names and shapes, no weight is read.

The header is eight bytes of length and that much JSON
(https://github.com/huggingface/safetensors#format), and it says how long the file has to be: an
interrupted download is noticed here and not on the GPUs.
"""

from __future__ import annotations

import hashlib
import json
import re
from math import prod
from pathlib import Path
from typing import Any

from sft_trainer import foreign, layout
from sft_trainer.errors import UserError

INDEX = "model.safetensors.index.json"
EMBEDDING = re.compile(r"(^|\.)(embed_tokens|wte|word_embeddings|embed_in|tok_embeddings)\.weight$")
HEAD = re.compile(r"(^|\.)(lm_head|embed_out|output)\.weight$")
VOCABULARY = re.compile(f"{EMBEDDING.pattern}|(^|\\.)(lm_head|embed_out|output)\\.(weight|bias)$")
_MAX_HEADER = foreign.DOCUMENT  # 150,000 tensors; the reference implementation reads 100 MiB
_BITS = {
    **dict.fromkeys(("F4",), 4),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 16),
    **dict.fromkeys(("U32", "I32", "F32"), 32),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 64),
}
"""Of one element."""
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
        names = _listed(index)
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


def _listed(index: Path) -> list[str]:
    """The files that an index names, each of which lies beside it."""
    document = foreign.document(index, "WeightsDamaged")
    listed = document.get("weight_map") if isinstance(document, dict) else None
    names = list(listed.values()) if isinstance(listed, dict) else []
    strange = [name for name in names if not isinstance(name, str) or name != Path(name).name or name == ".."]
    if not names or strange:
        what = f"names {str(strange[0])[:80]!r}, which is no file beside it" if names else "names no files"
        raise UserError("WeightsDamaged", f"{layout.shown(index)} {what}; copy it from the model again")
    return sorted(set(names))


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
            header = foreign.parsed(stream.read(length))
        except ValueError as exc:
            raise UserError("WeightsDamaged", _damaged(path, start)) from exc
    if not isinstance(header, dict):
        raise UserError("WeightsDamaged", _damaged(path, start))
    try:
        stated = 8 + length + _end(header)
    except (ValueError, KeyError, TypeError) as exc:
        words = f"lacks {exc}" if isinstance(exc, KeyError) else str(exc)
        raise UserError(
            "WeightsDamaged", f"{layout.shown(path)}: its header {words}; copy it from the model again"
        ) from exc
    if size != stated:
        raise UserError(
            "WeightsDamaged",
            f"{layout.shown(path)} has {size:,} bytes, its header says "
            f"{stated:,}; copy it again (an interrupted download?)",
        )
    return header


def _end(header: dict[str, Any]) -> int:
    """Where the last tensor ends. ValueError, KeyError or TypeError if they do not fill the file one after the other."""
    end = 0
    entries = [(name, entry) for name, entry in header.items() if name != "__metadata__"]
    for name, entry in sorted(entries, key=lambda item: _offsets(item[1])):
        shape, bits = entry["shape"], _BITS.get(str(entry["dtype"]))
        if not isinstance(shape, list) or not all(type(size) is int and size >= 0 for size in shape):
            raise ValueError(f"gives {name[:80]} the shape {str(shape)[:40]}")
        if bits is None:
            raise ValueError(f"gives {name[:80]} the type {str(entry['dtype'])[:40]}")
        begin, after = _offsets(entry)
        if begin != end or (after - begin) * 8 != prod(shape) * bits:
            raise ValueError(f"gives {name[:80]} of shape {str(shape)[:40]} the bytes {begin} to {after}")
        end = after
    return end


def _offsets(entry: dict[str, Any]) -> tuple[int, int]:
    begin, end = entry["data_offsets"]
    if type(begin) is not int or type(end) is not int:
        raise ValueError("has offsets that are no numbers")
    return begin, end


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
