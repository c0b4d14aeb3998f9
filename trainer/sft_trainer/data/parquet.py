"""Rows of a Parquet file, a few at a time: what it holds may be a thousand times its size."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

_ROWS, _BYTES = 1024, 64 << 20  # at once, whichever is less


class Damaged(ValueError):
    """Not a readable Parquet file; in Arrow's words."""


def rows(path: Path) -> Iterator[dict[str, Any] | Exception]:
    """Every row, or what keeps it from being one: bytes that are no text, a date out of range."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as table:
            for batch in table.iter_batches(batch_size=batch_size(table.metadata)):
                for index in range(batch.num_rows):
                    try:
                        row = batch.slice(index, 1).to_pylist()[0]
                    except (ValueError, ArithmeticError) as exc:
                        yield exc
                    else:
                        yield row
    except (pa.ArrowException, OSError) as exc:
        if getattr(exc, "errno", None) is not None or isinstance(exc, MemoryError):
            raise  # the volume's or the machine's fault; what Arrow says of damaged pages has no errno
        raise Damaged(str(exc)) from exc


def count(path: Path) -> int:
    """How many rows the file says that it has; 0 of one that cannot be read."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return int(pq.read_metadata(path).num_rows)
    except (pa.ArrowException, OSError):
        return 0  # reading it says what is wrong


def batch_size(metadata: Any) -> int:
    """Rows that are read at once, by what the largest group of rows says that it holds."""
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    widest = max((group.total_byte_size // max(group.num_rows, 1) for group in groups), default=0)
    return max(1, min(_ROWS, _BYTES // max(widest, 1)))
