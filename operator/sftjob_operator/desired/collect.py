"""What may be removed from a job's volume: the platform's rule, and what jobs on the same claim still need."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from sft_trainer.config import CollectConfig
from sftjob_operator.api.objects import Manifest, is_finished
from sftjob_operator.desired.claim import claim_name_in
from sftjob_operator.settings import Settings

_DAY = 24 * 3600
_LARGEST = 128 * 1024
"""Characters that may lie in a ConfigMap beside the rows of a spec."""


def after_preparation(
    settings: Settings, claim: str, every: Sequence[Manifest], now: datetime
) -> CollectConfig | None:
    """What the prepare pod collects when it is done; None = nothing. `every` SFTJob of the namespace is known.

    With more open jobs than a ConfigMap can name (about a thousand) nothing is collected.
    """
    days, limit = settings.collect_unused_days, settings.collect_limit
    if not every or (not days and limit is None):
        return None
    found = with_open_jobs(
        CollectConfig(
            unused_seconds=days * _DAY or None,
            limit_bytes=limit,
            checkpoints=settings.collect_checkpoints,
            # Whole hours: a Job that is refused for a while does not get another ConfigMap with each try.
            listed_time=now.replace(minute=0, second=0, microsecond=0),
        ),
        claim,
        every,
    )
    return found if len(found.to_json()) <= _LARGEST else None


def with_open_jobs(policy: CollectConfig, claim: str, every: Sequence[Manifest]) -> CollectConfig:
    """`policy`, and what it must spare: names, models and data of the jobs on `claim` that are not over."""
    open_ = [each for each in every if claim_name_in(each) == claim and not is_finished(each)]
    return policy.model_copy(
        update={
            "jobs": tuple(sorted(each["metadata"]["name"] for each in open_)),
            "directories": tuple(sorted({folder for each in open_ for folder in _folders(each)})),
        }
    )


def _folders(job: Manifest) -> list[str]:
    """Of model and data, once it is prepared. Facts are what a pod has said, and may be anything."""
    facts = ((job.get("status") or {}).get("prepared") or {}).get("facts")
    found = []
    for part, name in (("model", "directory"), ("data", "cache")):
        below = facts.get(part) if isinstance(facts, dict) else None
        folder = below.get(name) if isinstance(below, dict) else None
        found += [folder] if isinstance(folder, str) else []
    return found
