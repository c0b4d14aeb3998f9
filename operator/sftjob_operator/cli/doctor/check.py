"""One thing that `sftjob doctor` has looked at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "warning", "missing", "unknown"]


@dataclass(frozen=True)
class Check:
    """What was found, and what would repair it."""

    name: str
    state: State
    found: str
    fix: str = ""
    """Empty where nothing is to be done."""
