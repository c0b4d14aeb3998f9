"""More rows for some tensors of a safetensors file: the new ones are the mean of the old ones.

Written a piece at a time, so that a model larger than the pod's memory is no matter, and with numpy alone, because
preparation starts without torch. numpy has no bf16: its values are the upper halves of fp32.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from sft_trainer import layout, weights
from sft_trainer.errors import UserError

_PIECE = 64 << 20  # bytes
_STORED = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": np.uint16}


def extend(source: Path, target: Path, names: Collection[str], first: int, count: int) -> int:
    """Write `source` to `target` with rows `first` to `first + count` of the tensors `names` set to the mean of the
    rows before; a tensor that is shorter grows. The number of bytes by which it is longer.

    Raises:
        UserError: a tensor is stored in a type that has no mean.
    """
    header = weights.header(source)
    metadata = header.pop("__metadata__", None)
    start = 8 + weights.header_length(source)
    entries = sorted(header.items(), key=lambda item: item[1]["data_offsets"][0])
    changed: dict[str, Any] = {} if metadata is None else {"__metadata__": metadata}
    place = 0
    for name, entry in entries:
        shape, (begin, end) = list(entry["shape"]), entry["data_offsets"]
        if name in names:
            row = (end - begin) // shape[0]
            shape[0] = max(shape[0], first + count)
            end = begin + row * shape[0]
        changed[name] = {**entry, "shape": shape, "data_offsets": [place, place + end - begin]}
        place += end - begin
    text = json.dumps(changed, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # data begins at a multiple of eight
    with source.open("rb") as old, target.open("wb") as new:
        new.write(len(text).to_bytes(8, "little") + text)
        for name, entry in entries:
            begin, end = entry["data_offsets"]
            if name in names:
                _rows(source, start + begin, entry, new, first, count)
            else:
                old.seek(start + begin)
                _copy(old, new, end - begin)
    return place - int(max(entry["data_offsets"][1] for _, entry in entries))


def _rows(source: Path, offset: int, entry: dict[str, Any], new: BinaryIO, first: int, count: int) -> None:
    kind = _STORED.get(entry["dtype"])
    if kind is None:
        raise UserError(
            "AddedTokensUnsupported",
            f"model.addTokens: {layout.shown(source)} holds its embeddings as {entry['dtype']}; "
            "take the model in bf16, fp16 or fp32",
        )
    stored = np.memmap(source, kind, "r", offset, tuple(entry["shape"]))
    before = min(first, len(stored))
    for piece in _pieces(stored[:before]):
        new.write(piece.tobytes())
    mean = _mean(stored[:before])
    for _ in range(first + count - before):  # rows between the last and the first new one, too
        new.write(mean.tobytes())
    for piece in _pieces(stored[first + count :]):
        new.write(piece.tobytes())


def _mean(stored: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Over the rows, in fp64; in the type of `stored`, rounded to the nearest."""
    total = np.zeros(stored.shape[1:], np.float64)
    for piece in _pieces(stored):
        total += _values(piece).sum(0, dtype=np.float64)
    mean = total / len(stored)
    if stored.dtype != np.uint16:
        return mean.astype(stored.dtype)
    bits = mean.astype(np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)  # ties to even


def _values(piece: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return (piece.astype(np.uint32) << 16).view(np.float32) if piece.dtype == np.uint16 else piece


def _pieces(stored: npt.NDArray[Any]) -> list[npt.NDArray[Any]]:
    if len(stored) == 0:
        return []
    each = max(1, _PIECE // max(1, stored[:1].nbytes))
    return [stored[start : start + each] for start in range(0, len(stored), each)]


def _copy(old: BinaryIO, new: BinaryIO, length: int) -> None:
    while length:
        piece = old.read(min(length, _PIECE))
        new.write(piece)
        length -= len(piece)
