"""What is known about one reason: what it means, what to do, and with which commands. Pure."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Advice:
    """Of one reason."""

    means: str
    """A sentence."""
    do: str = ""
    """What to do, as a sentence; empty = nothing."""
    commands: tuple[str, ...] = ()
    """`kubectl …` for a cluster only, else a verb of ours; {name}, {job}, {claim} and {attempt} are filled in."""


LOGS = "logs {name}"
DESCRIBE = "kubectl describe sftjob {name}"
EDIT = "kubectl edit sftjob {name}"
AGAIN = "Correct the spec and apply it again: the job has not started, so it is taken up anew."
