"""Which entry of `training.parameterGroups` decides for a parameter: the first whose pattern matches its name."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from sft_trainer.config import ParameterGroup


def first_match(name: str, wanted: Sequence[ParameterGroup]) -> ParameterGroup | None:
    """None = none matches."""
    return next((group for group in wanted if fnmatchcase(name, group.pattern)), None)
