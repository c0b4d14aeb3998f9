"""Where the commands speak: on a closed pipe, a full disk or a terminal that is gone they go on in silence."""

from __future__ import annotations

import os
import sys
from typing import Any, TextIO, cast

from rich.console import Console


class _Lenient:
    """A stream whose first failed write is its last: from then on it leads nowhere."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError:
            self._silence()
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError:
            self._silence()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _silence(self) -> None:
        """In place, for what is still buffered is written when the interpreter ends."""
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), self._stream.fileno())


def console() -> Console:
    """For what a command has to say on stdout."""
    return Console(file=cast("TextIO", _Lenient(sys.stdout)), emoji=False)
