"""Whether the header of a GGUF file fits in its file, before a library believes its counts.

The format (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md) states how many keys, elements and dimensions
follow, in 64 bits each: readers count up to whatever a damaged or hostile file says.
"""

from __future__ import annotations

import struct
from math import prod
from pathlib import Path
from typing import BinaryIO

MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_DIMENSIONS = 4
_LARGEST = 10**9  # of a number that says how large something is
_ELEMENTS_PER_BYTE = 8  # in the strongest quantisation


class _Reader:
    """A file of which nothing is read or skipped behind its end."""

    def __init__(self, stream: BinaryIO, size: int) -> None:
        self._stream, self.left = stream, size

    def bytes(self, count: int) -> bytes:
        self._take(count)
        return self._stream.read(count)

    def skip(self, count: int) -> None:
        self._take(count)
        self._stream.seek(count, 1)

    def number(self, form: str) -> int:
        (value,) = struct.unpack(f"<{form}", self.bytes(struct.calcsize(f"<{form}")))
        return int(value) if form not in "fd" else 0

    def text(self) -> str:
        return self.bytes(self.number("Q")).decode("utf-8", "replace")

    def _take(self, count: int) -> None:
        if count > self.left:
            raise ValueError("says that it holds more than the file has bytes")
        self.left -= count


def check(path: Path) -> None:
    """ValueError with what the header of `path` says that cannot be."""
    size = path.stat().st_size
    with path.open("rb") as stream:
        reader = _Reader(stream, size)
        if reader.bytes(len(MAGIC)) != MAGIC or reader.number("I") not in _VERSIONS:
            raise ValueError(f"is of another version than {' and '.join(map(str, _VERSIONS))}")
        tensors, keys = reader.number("Q"), reader.number("Q")
        for _ in range(keys):
            name, value = reader.text(), _value(reader)
            is_size = name.endswith(("_count", "_length"))
            if is_size and value is not None and not 0 <= value <= _LARGEST:
                raise ValueError(f"gives {name[:80]} as {value}")
            if name.endswith(".block_count") and (value or 0) > tensors:
                raise ValueError(f"tells of {value} layers and holds {tensors} tensors")
        for _ in range(tensors):
            name, dimensions = reader.text(), reader.number("I")
            if dimensions > _DIMENSIONS:
                raise ValueError(f"gives {name[:80]} {dimensions} dimensions")
            shape = [reader.number("Q") for _ in range(dimensions)]
            reader.skip(4)
            offset = reader.number("Q")
            if prod(shape) > size * _ELEMENTS_PER_BYTE or offset > size:
                raise ValueError(f"gives {name[:80]} the shape {shape} at byte {offset} of {size:,}")


def _value(reader: _Reader) -> int | None:
    """A whole number; None of anything else, which is skipped."""
    kind = reader.number("I")
    if form := _SCALARS.get(kind):
        return reader.number(form)
    if kind == _STRING:
        reader.skip(reader.number("Q"))
        return None
    if kind != _ARRAY:
        raise ValueError(f"has a value of type {kind}")
    of, count = reader.number("I"), reader.number("Q")
    if form := _SCALARS.get(of):
        reader.skip(count * struct.calcsize(f"<{form}"))
    elif of == _STRING:
        for _ in range(count):
            reader.skip(reader.number("Q"))
    else:
        raise ValueError(f"has a list of type {of}")
    return None
