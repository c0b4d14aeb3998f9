"""One thing that `sftjob doctor` has looked at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from sftjob_operator.api.objects import Manifest

State = Literal["ok", "warning", "missing", "unknown"]

Listed = Sequence[Manifest] | None
"""None: the person may not list them."""


@dataclass(frozen=True)
class Check:
    """What was found, and what would repair it."""

    name: str
    state: State
    found: str
    fix: str = ""
    """Empty where nothing is to be done."""
