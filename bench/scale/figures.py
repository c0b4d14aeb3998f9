"""Figures as JSON lines, and what of them must hold."""

from __future__ import annotations

import json
import sys
from typing import Any

from bench.scale.operator_seen import Samples

VERBS = ("GET", "POST", "PATCH", "DELETE")


class Figures:
    """Of one run of so many jobs, watched for so long."""

    def __init__(self, jobs: int, seconds: float) -> None:
        """None yet."""
        self.jobs, self.seconds = jobs, seconds
        self.failures: list[str] = []

    def judge(
        self, figure: str, value: float, *, most: float = float("inf"), least: float = 0.0, **more: Any
    ) -> None:
        """Print it with its limit, and remember if it is beyond."""
        limit = {"limit": most} if least == 0.0 else {"limit": least}
        say(figure=figure, jobs=self.jobs, value=round(value, 2), **limit, **more)
        if not least <= value <= most:
            self.failures.append(figure)


def say(**facts: Any) -> None:
    """One JSON line."""
    sys.stdout.write(json.dumps(facts) + "\n")
    sys.stdout.flush()


def total(samples: Samples, name: str) -> float:
    """The sum over all labels."""
    return sum(value for _, value in samples.get(name, []))


def calls(before: Samples, after: Samples, share: float) -> dict[str, float]:
    """Requests of the operator in between, watches aside, by verb and divided by `share`."""
    name = "sftjob_operator_api_requests_total"
    count = dict.fromkeys(VERBS, 0.0)
    for sign, samples in ((-1, before), (1, after)):
        for labels, value in samples.get(name, []):
            count[labels["verb"]] += sign * value
    return {verb: round(value / share, 2) for verb, value in count.items()}


def quantile(before: Samples, after: Samples, share: float) -> float:
    """Upper bound, in milliseconds, of the bucket in which this share of the passes in between has ended."""
    name = "sftjob_operator_reconcile_seconds_bucket"
    early = {labels["le"]: value for labels, value in before[name]}
    counts = sorted((float(labels["le"]), value - early[labels["le"]]) for labels, value in after[name])
    return next(1000 * bound for bound, count in counts if count >= share * counts[-1][1])
