"""`World`: everything one pass may know. The shell gathers it, the core decides on it alone.

Time is in it, so that a decision is a value: the same world always gives the same step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from sft_trainer.config import Progress
from sftjob_operator.api.objects import Manifest, Ref
from sftjob_operator.api.v1alpha1 import SFTJob
from sftjob_operator.planning.hardware import Hardware
from sftjob_operator.settings import Settings

NAME_TAKEN = "NameTaken"
"""Reason of a Refusal that is ours: the child's name is held by an object of another owner."""


@dataclass(frozen=True)
class Refusal:
    """The cluster understood a child and said no (4xx), in its own words."""

    ref: Ref
    code: int
    reason: str
    message: str


@dataclass(frozen=True)
class Standing:
    """An SFTJob in a namespace with a quota, where it has a share of it or waits for one."""

    name: str
    created: str
    """metadata.creationTimestamp."""
    gpus: int
    """That it has, or asks for."""
    holds: bool
    """False = it waits."""


@dataclass(frozen=True)
class World:
    """One SFTJob and what surrounds it. What `needs` did not ask for may be left at its default."""

    job: SFTJob
    """As last seen, with its status; read by `policy.accept.read_sftjob`."""
    now: datetime
    """Aware, UTC."""
    jobs: Sequence[Manifest] = ()
    """batch/v1 Jobs labelled with this SFTJob's name (those of an earlier namesake are told apart by uid)."""
    sftjobs: Sequence[Manifest] = ()
    """Every SFTJob of the namespace, this one too; with `Needs.sftjobs`."""
    pods: Sequence[Manifest] | None = None
    """Pods with `Needs.pod_labels`; None = not looked at."""
    prerequisites: Mapping[Ref, Manifest | None] = field(default_factory=dict)
    """Those of `Needs.prerequisites`; None = it does not exist, {} = it may not be read."""
    progress: Progress | None = None
    """Read by `reports.read_progress`; None = not asked, not to be had or not readable."""
    refusal: Refusal | None = None
    """A child that was refused in this very pass: the step is then asked again, with this set."""
    neighbours: Sequence[Standing] = ()
    """The others that share the quota of the namespace; none where it has no quota."""
    has_share: bool = False
    """Whether it had its gang when the pass began, or was about to have it: set by `policy.decide`."""
    hardware: Hardware = field(default_factory=Hardware)
    settings: Settings = field(default_factory=Settings)
