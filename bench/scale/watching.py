"""What is measured while all jobs train and nothing else happens."""

from __future__ import annotations

import asyncio
import itertools
import statistics
import time

from bench.scale.figures import Figures, calls, quantile, say, total
from bench.scale.operator_seen import AuditLog, Process, scrape
from bench.scale.progress import Rank0

SCRAPE_SECONDS = 15.0  # as a Prometheus would
AGE_SECONDS, WRITE_SECONDS, CORES = 15.0, 30.0, 1.0  # what must hold


async def watch(operator: Process, audit: AuditLog, rank0: Rank0, figures: Figures) -> None:
    """For as long as the figures are to be of."""
    audit.follow()
    audit.writes.clear()
    rank0.reset()
    before, _ = await scrape()
    cpu, began = operator.cpu_seconds, time.monotonic()
    ages: list[float] = []
    took: list[float] = []
    after = before
    for turn in itertools.count(1):
        await asyncio.sleep(began + turn * SCRAPE_SECONDS - time.monotonic())
        after, seconds = await scrape()
        now = time.time()
        took.append(seconds)
        ages += [now - value for _, value in after["sftjob_operator_job_reported_timestamp_seconds"]]
        audit.follow()
        if turn * SCRAPE_SECONDS >= figures.seconds:
            break
    window = time.monotonic() - began
    gaps = [*rank0.gaps.values(), rank0.silence]
    figures.judge(
        "progress_age_seconds", max(ages), most=AGE_SECONDS, median=round(statistics.median(ages), 2)
    )
    figures.judge(
        "between_two_polls_seconds", max(gaps), most=AGE_SECONDS, median=round(statistics.median(gaps), 2)
    )
    figures.judge("cpu_cores", (operator.cpu_seconds - cpu) / window, most=CORES)
    _writes(audit, window, figures)
    say(figure="api_calls_per_job_and_minute", **calls(before, after, figures.jobs * window / 60))
    say(figure="scrape_seconds", median=round(statistics.median(took), 3), most=round(max(took), 3))
    say(figure="rss_mib", jobs=figures.jobs, value=round(operator.rss_mib), files=operator.files)
    passes = [total(samples, "sftjob_operator_reconcile_total") for samples in (before, after)]
    say(
        figure="passes",
        per_second=round((passes[1] - passes[0]) / window, 1),
        milliseconds={f"p{share}": quantile(before, after, share / 100) for share in (50, 90, 99)},
    )


def _writes(audit: AuditLog, window: float, figures: Figures) -> None:
    """Of every job's status, by the API server's audit log."""
    times = [sorted(moments) for moments in audit.writes.values()]
    pauses = [late - early for moments in times for early, late in itertools.pairwise(moments)]
    figures.judge("between_two_status_writes_seconds", min(pauses, default=window), least=WRITE_SECONDS)
    count = sum(map(len, times))
    say(figure="status_writes_per_job_and_30_seconds", mean=round(30 * count / figures.jobs / window, 2))
