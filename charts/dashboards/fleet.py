"""All jobs: who runs, who holds GPUs, and what they make of them."""

from __future__ import annotations

from grafana_foundation_sdk.builders.dashboard import Dashboard

from dashboards.panels import JOB, Query, board, figure, graph, row, rows

PODS = 'kind=~"productive|checkpoint|lost|restart"'


def rate_by_kind(extra: str = "", window: str = "$__rate_interval") -> str:
    """Seconds per second that the jobs spend on something: so many jobs at a time."""
    return f"rate(sftjob_operator_job_seconds_total{{{JOB}{extra}}}[{window}])"


def quota(kind: str) -> str:
    """What namespaces hold, wait for or may have, in jobs and GPUs."""
    return f'max by (namespace, resource) (sftjob_operator_quota{{namespace=~"$namespace", type="{kind}"}})'


def fleet() -> Dashboard:
    """The dashboard `sftjob-fleet`."""
    built = board("sftjob-fleet", "SFTJob / Fleet", "All SFTJobs of the chosen namespaces.")
    running = f'group_left () sftjob_operator_job_info{{{JOB}, phase="Running"}}'
    productive = f"sum({rate_by_kind(', kind=' + chr(34) + 'productive' + chr(34))})"
    row(
        built,
        "Now",
        figure(
            "Jobs that run",
            "none",
            Query(f'count(sftjob_operator_job_info{{{JOB}, phase="Running"}}) or vector(0)'),
        ),
        figure(
            "Jobs that wait",
            "none",
            Query(f'count(sftjob_operator_job_info{{{JOB}, phase=~"Pending|Queued"}}) or vector(0)'),
        ),
        figure("GPUs held", "none", Query(f"sum(sftjob_operator_job_gpus{{{JOB}}})")),
        figure(
            "Tokens per second",
            "none",
            Query(
                f"sum(sftjob_operator_job_tokens_per_second{{{JOB}}} * on (namespace, sftjob) {running}) or vector(0)"
            ),
        ),
        figure(
            "Goodput",
            "percentunit",
            Query(f"{productive} / (sum({rate_by_kind(', ' + PODS)}) > 0)"),
            text="Productive time as a share of the time with pods. docs/metrics.md says what counts.",
        ),
        figure(
            "Failed attempts",
            "none",
            Query(f"sum(sftjob_operator_job_failed_attempts{{{JOB}}}) or vector(0)"),
        ),
    )
    row(
        built,
        "Over time",
        graph(
            "Jobs by phase",
            "none",
            Query(f"count by (phase) (sftjob_operator_job_info{{{JOB}}})", "{{phase}}"),
            stacked=True,
        ),
        graph(
            "GPUs by namespace",
            "none",
            Query(f"sum by (namespace) (sftjob_operator_job_gpus{{{JOB}}})", "{{namespace}}"),
            stacked=True,
        ),
        graph(
            "What time is spent on",
            "none",
            Query(f"sum by (kind) ({rate_by_kind()})", "{{kind}}"),
            text="Jobs at a time, by what they are doing.",
            stacked=True,
        ),
        graph(
            "Failed attempts by class",
            "none",
            Query(f"sum by (class) (sftjob_operator_job_failed_attempts{{{JOB}}})", "{{class}}"),
            text="Of the jobs that are there, the newest ten attempts each.",
        ),
        graph(
            "Tokens per second",
            "none",
            Query(
                f"sftjob_operator_job_tokens_per_second{{{JOB}}} * on (namespace, sftjob) {running}",
                "{{namespace}}/{{sftjob}}",
            ),
        ),
        graph(
            "MFU",
            "percentunit",
            Query(f"sftjob_operator_job_mfu_ratio{{{JOB}}}", "{{namespace}}/{{sftjob}}"),
            text="Of rank 0. Absent where the peak of the device is not known.",
        ),
    )
    row(
        built,
        "Quotas of namespaces",
        graph(
            "Share of the quota in use",
            "percentunit",
            Query(f"{quota('held')} / ({quota('limit')} > 0)", "{{namespace}} {{resource}}"),
            text="Only of namespaces that have a quota.",
        ),
        graph(
            "Waiting in line",
            "none",
            Query(quota("waiting"), "{{namespace}} {{resource}}"),
            text="SFTJobs, and the GPUs they ask for.",
        ),
    )
    by_job = "sum by (namespace, sftjob)"
    row(
        built,
        "Jobs",
        rows(
            "Jobs",
            Query(f"max by (namespace, sftjob, phase) (sftjob_operator_job_info{{{JOB}}})", "there"),
            Query(
                f"100 * {by_job} (sftjob_operator_job_step{{{JOB}}}) / {by_job} (sftjob_operator_job_steps{{{JOB}}} > 0)",
                "done %",
            ),
            Query(f"{by_job} (sftjob_operator_job_loss{{{JOB}}})", "loss"),
            Query(f"{by_job} (sftjob_operator_job_eval_loss{{{JOB}}})", "eval loss"),
            Query(f"{by_job} (sftjob_operator_job_tokens_per_second{{{JOB}}})", "tokens/s"),
            Query(f"{by_job} (sftjob_operator_job_restarts{{{JOB}}})", "restarts"),
            Query(f"{by_job} (sftjob_operator_job_gpus{{{JOB}}})", "GPUs"),
        ),
    )
    return built
