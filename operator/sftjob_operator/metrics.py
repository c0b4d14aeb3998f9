"""The operator's own Prometheus metrics.

What happens is counted where it happens; what *is* (queue, jobs, progress) is read from its owner at every
scrape by a collector, so a series vanishes with its object and nobody has to remember to remove it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Metric,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from sft_trainer.config import Progress
from sftjob_operator import jobseries
from sftjob_operator.cluster.base import Key, View
from sftjob_operator.workqueue import WorkQueue

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
PASS_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
LAG_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)


class Metrics:
    """One registry per operator process."""

    def __init__(self) -> None:
        """All series start at zero."""
        disable_created_metrics()  # type: ignore[no-untyped-call] # a second series per counter, read by nobody
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)  # process_cpu_seconds_total and its like
        self._reconciles = Counter(
            "sftjob_operator_reconcile",
            "Passes over an SFTJob, by result: ok, retry (the cluster failed) or error (we did).",
            ["result"],
            registry=self.registry,
        )
        self._seconds = Histogram(
            "sftjob_operator_reconcile_seconds",
            "Duration of a pass over an SFTJob.",
            buckets=PASS_BUCKETS,
            registry=self.registry,
        )
        self._requests = Counter(
            "sftjob_operator_api_requests",
            "Requests of the reconciler to the API server, by verb and status code (error: no answer).",
            ["verb", "code"],
            registry=self.registry,
        )
        self._leader = Gauge(
            "sftjob_operator_leader", "1 where this replica does the work, else 0.", registry=self.registry
        )
        self._watching = Gauge(
            "sftjob_operator_watching",
            "1 where this replica has found the SFTJob kind and watches it, else 0.",
            registry=self.registry,
        )
        self._watch_lag = Histogram(
            "sftjob_operator_watch_lag_seconds",
            "From a write of ours to the pass that saw it in the watch; 5 s and more: it was not waited for.",
            buckets=LAG_BUCKETS,
            registry=self.registry,
        )
        for result in ("ok", "retry", "error"):
            self._reconciles.labels(result)

    def on_pass(self, result: str, seconds: float) -> None:
        """A pass is over."""
        self._reconciles.labels(result).inc()
        self._seconds.observe(seconds)

    def on_request(self, verb: str, code: str) -> None:
        """The API server answered, or not."""
        self._requests.labels(verb, code).inc()

    def on_watch_lag(self, seconds: float) -> None:
        """The watch has shown what we wrote so long ago."""
        self._watch_lag.observe(seconds)

    def watch_leader(self, leading: Callable[[], bool]) -> None:
        """Whom to ask whether this replica works."""
        self._leader.set_function(leading)

    def on_watch(self) -> None:
        """The kind is served, and its objects are listed and watched from now on, to the end of the process."""
        self._watching.set(1)

    def watch(
        self,
        queue: WorkQueue[Key],
        view: View,
        progress: Mapping[Key, Progress],
        shares: Callable[[], Iterable[tuple[tuple[str, str, str], int]]] = lambda: (),
    ) -> None:
        """Add what is read at every scrape; `shares` are those of quotas (namespace, resource, type)."""
        self.registry.register(_World(queue, view, progress, shares))

    def exposition(self) -> bytes:
        """The text format of all series."""
        return generate_latest(self.registry)


class _World(Collector):
    def __init__(
        self,
        queue: WorkQueue[Key],
        view: View,
        progress: Mapping[Key, Progress],
        shares: Callable[[], Iterable[tuple[tuple[str, str, str], int]]],
    ) -> None:
        self._queue, self._view, self._progress, self._shares = queue, view, progress, shares

    def describe(self) -> Iterable[Metric]:
        return []  # nothing is scraped just to register

    def collect(self) -> Iterable[Metric]:
        prefix = "sftjob_operator"
        yield GaugeMetricFamily(
            f"{prefix}_queue_depth", "SFTJobs that are due and wait for a worker.", value=self._queue.depth
        )
        yield GaugeMetricFamily(
            f"{prefix}_queue_oldest_seconds",
            "How long the first of them has been waiting.",
            value=self._queue.oldest_seconds,
        )
        now = datetime.now(UTC)
        known = {
            key: jobseries.of(body, self._progress.get(key), now)
            for key in self._view.keys()
            if (body := self._view.sftjob(key)) is not None
        }
        jobs = GaugeMetricFamily(f"{prefix}_jobs", "SFTJobs by phase.", labels=["phase"])
        phases = [job.phase for job in known.values()]
        for phase in jobseries.PHASES:
            jobs.add_metric([phase], phases.count(phase))
        yield jobs
        quotas = GaugeMetricFamily(
            f"{prefix}_quota",
            "Quotas of namespaces, by resource (jobs, gpus) and type: the limit, what is held, what is waited for.",
            labels=["namespace", "resource", "type"],
        )
        for labels, number in self._shares():
            quotas.add_metric(labels, number)
        yield quotas
        yield from _of_jobs(known)


def _of_jobs(known: Mapping[Key, jobseries.Job]) -> Iterator[Metric]:
    for series in jobseries.JOB_SERIES:
        name, labels = f"sftjob_operator_job_{series.name}", ["namespace", "sftjob", *series.labels]
        kind = CounterMetricFamily if series.is_counter else GaugeMetricFamily
        family = kind(name, series.text, labels=labels)
        for key, job in known.items():
            for extra, number in jobseries.samples(series, job):
                family.add_metric([key.namespace, key.name, *extra], number)
        yield family
