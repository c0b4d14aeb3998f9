"""What is wrong with a state directory."""

from __future__ import annotations


class StateError(Exception):
    """It cannot be used; one sentence says why, and what to do."""
