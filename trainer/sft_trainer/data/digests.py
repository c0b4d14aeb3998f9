"""A set of digests in a third of the memory that Python's own takes: there is one for every row of the data."""

from __future__ import annotations

_SIZE = 16
_EMPTY = bytes(_SIZE)  # no digest: one in 2^128 is
_FIRST_SLOTS = 1024


class Digests:
    """Digests of 16 bytes, in one open-addressed table: 21 to 43 bytes each, and 64 for a moment while it grows."""

    def __init__(self) -> None:
        self._table = bytearray(_FIRST_SLOTS * _SIZE)
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, digest: bytes) -> bool:
        """Whether `digest` is new."""
        place = self._place(digest)
        if self._table[place : place + _SIZE] == digest:
            return False
        self._table[place : place + _SIZE] = digest
        self._count += 1
        if 4 * self._count * _SIZE > 3 * len(self._table):
            self._grow()
        return True

    def _place(self, digest: bytes) -> int:
        """Where `digest` is, or else the first free place behind where it should be."""
        table, end = self._table, len(self._table)
        place = int.from_bytes(digest[:8], "big") * _SIZE % end
        while (found := table[place : place + _SIZE]) != _EMPTY and found != digest:
            place = (place + _SIZE) % end
        return place

    def _grow(self) -> None:
        before, self._table = self._table, bytearray(2 * len(self._table))
        for start in range(0, len(before), _SIZE):
            digest = bytes(before[start : start + _SIZE])
            if digest != _EMPTY:
                place = self._place(digest)
                self._table[place : place + _SIZE] = digest
