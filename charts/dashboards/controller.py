"""The operator itself: does it lead, does it keep up, is the API server well."""

from __future__ import annotations

from grafana_foundation_sdk.builders.dashboard import Dashboard

from dashboards.panels import Query, board, figure, graph, row

RATE = "[$__rate_interval]"


def quantile(share: float, metric: str) -> str:
    """Of a histogram over all replicas."""
    return f"histogram_quantile({share}, sum by (le) (rate({metric}_bucket{RATE})))"


def controller() -> Dashboard:
    """The dashboard `sftjob-operator`."""
    built = board("sftjob-operator", "SFTJob / Operator", "The operator process.", jobs=False)
    failing = f'sum(rate(sftjob_operator_reconcile_total{{result!="ok"}}{RATE}))'
    row(
        built,
        "Now",
        figure("Leaders", "none", Query("sum(sftjob_operator_leader) or vector(0)"), text="Must be 1."),
        figure("SFTJobs", "none", Query("sum(sftjob_operator_jobs)")),
        figure("Passes per second", "none", Query(f"sum(rate(sftjob_operator_reconcile_total{RATE}))")),
        figure("Failed passes per second", "none", Query(failing)),
        figure("Oldest in the queue", "s", Query("max(sftjob_operator_queue_oldest_seconds)")),
        figure(
            "CPU",
            "percentunit",
            Query(
                f"sum(rate(process_cpu_seconds_total{RATE}) * on (instance) group_left () sftjob_operator_leader)"
            ),
            text="Of the leader; 100 % is one core.",
        ),
    )
    row(
        built,
        "Work",
        graph(
            "SFTJobs by phase",
            "none",
            Query("sum by (phase) (sftjob_operator_jobs)", "{{phase}}"),
            stacked=True,
        ),
        graph(
            "Queue",
            "none",
            Query("sum(sftjob_operator_queue_depth)", "due"),
            text="SFTJobs that wait for a worker.",
        ),
        graph(
            "Passes by result",
            "none",
            Query(f"sum by (result) (rate(sftjob_operator_reconcile_total{RATE}))", "{{result}}"),
        ),
        graph(
            "Duration of a pass",
            "s",
            Query(quantile(0.5, "sftjob_operator_reconcile_seconds"), "median"),
            Query(quantile(0.99, "sftjob_operator_reconcile_seconds"), "99 %"),
        ),
        graph(
            "Lag of the watch",
            "s",
            Query(quantile(0.5, "sftjob_operator_watch_lag_seconds"), "median"),
            Query(quantile(0.99, "sftjob_operator_watch_lag_seconds"), "99 %"),
            text="From a write of the operator's to the pass that saw it.",
        ),
        graph(
            "Requests to the API server",
            "reqps",
            Query(
                f"sum by (verb, code) (rate(sftjob_operator_api_requests_total{RATE}))", "{{verb}} {{code}}"
            ),
        ),
        graph(
            "Memory",
            "bytes",
            Query(
                "process_resident_memory_bytes and on (instance) sftjob_operator_leader",
                "{{instance}}",
            ),
        ),
        graph("Leader", "none", Query("sftjob_operator_leader", "{{instance}}")),
    )
    return built
