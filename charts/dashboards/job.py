"""One job: is it running, how far, is it learning, is it fast, what is wrong."""

from __future__ import annotations

from grafana_foundation_sdk.builders.dashboard import AnnotationQuery, Dashboard

from dashboards.fleet import rate_by_kind
from dashboards.panels import JOB, SOURCE, Query, board, figure, graph, heat, row

RANKS = "namespace, sftjob, attempt"
NAME = "{{sftjob}}"


def last(metric: str, extra: str = "") -> str:
    """The series of the chosen jobs."""
    return f"{metric}{{{JOB}{extra}}}"


def of_job(metric: str) -> str:
    """What all ranks agree on, once."""
    return f"max by (namespace, sftjob) ({last(metric)})"


def apart(metric: str, extra: str = "") -> str:
    """A rank's value as a share of the median rank's."""
    series = last(metric, extra)
    return f"{series} / on ({RANKS}) group_left () quantile by ({RANKS}) (0.5, {series})"


def job() -> Dashboard:
    """The dashboard `sftjob-job`."""
    built = board("sftjob-job", "SFTJob / Job", "One SFTJob, from its phase to its slowest rank.")
    built.annotation(
        AnnotationQuery()
        .name("Attempts")
        .datasource(SOURCE)
        .enable(True)
        .icon_color("orange")
        .expr(f"changes({last('sftjob_operator_job_attempt')}[2m]) > 0")
    )
    _standing(built)
    _learning(built)
    _speed(built)
    _safety(built)
    return built


def _standing(built: Dashboard) -> None:
    done = f"{of_job('sftjob_operator_job_step')} / {of_job('sftjob_operator_job_steps')}"
    pods = "productive|checkpoint|lost|restart"
    spent = last("sftjob_operator_job_seconds_total")
    productive = last("sftjob_operator_job_seconds_total", ', kind="productive"')
    with_pods = last("sftjob_operator_job_seconds_total", f', kind=~"{pods}"')
    row(
        built,
        "Is it running, and how far",
        figure("Done", "percentunit", Query(done, NAME)),
        figure("Remaining", "s", Query(of_job("sftjob_operator_job_remaining_seconds"), NAME)),
        figure("Attempt", "none", Query(of_job("sftjob_operator_job_attempt"), NAME)),
        figure(
            "Ranks that live",
            "none",
            Query(f"sum by (namespace, sftjob) ({last('sft_trainer_rank_up')})", NAME),
        ),
        figure(
            "Goodput",
            "percentunit",
            Query(
                f"sum by (namespace, sftjob) ({productive}) / sum by (namespace, sftjob) ({with_pods})", NAME
            ),
            text="Of the whole job so far.",
        ),
        figure("Time so far", "s", Query(f"sum by (namespace, sftjob) ({spent})", NAME)),
        graph(
            "Phase",
            "none",
            Query(
                f"max by (namespace, sftjob, phase) ({last('sftjob_operator_job_info')})",
                "{{sftjob}} {{phase}}",
            ),
            width=12,
            stacked=True,
        ),
        graph(
            "What time is spent on",
            "percentunit",
            Query(f"sum by (kind) ({rate_by_kind()})", "{{kind}}"),
            width=12,
            stacked=True,
        ),
    )


def _learning(built: Dashboard) -> None:
    row(
        built,
        "Is it learning",
        graph(
            "Loss",
            "none",
            Query(
                f"max by ({RANKS}) ({last('sft_trainer_loss')})", "{{sftjob}} training, attempt {{attempt}}"
            ),
            Query(
                f"max by ({RANKS}) ({last('sft_trainer_eval_loss')})",
                "{{sftjob}} evaluation, attempt {{attempt}}",
            ),
            Query(of_job("sftjob_operator_job_loss"), "{{sftjob}} training, as the operator knows it"),
            text="Mean per supervised token of the global batch. "
            "Of a training that was shorter than a scrape the operator knows the last.",
            width=12,
        ),
        graph(
            "Perplexity of the held-out rows",
            "none",
            Query(of_job("sft_trainer_eval_perplexity"), NAME),
            width=6,
        ),
        graph("Learning rate", "sci", Query(of_job("sft_trainer_learning_rate"), NAME), width=6),
        graph(
            "Gradient norm before clipping",
            "none",
            Query(of_job("sft_trainer_gradient_norm"), NAME),
            width=12,
        ),
        graph(
            "fp16: loss scale and repeated steps",
            "none",
            Query(of_job("sft_trainer_loss_scale"), "{{sftjob}} scale"),
            Query(of_job("sft_trainer_skipped_steps_total"), "{{sftjob}} repeated"),
            width=12,
        ),
    )


def _speed(built: Dashboard) -> None:
    tokens = f"sum by (namespace, sftjob) (rate({last('sft_trainer_tokens_total')}[$__rate_interval]))"
    padded = f"sum by (namespace, sftjob) (rate({last('sft_trainer_padded_tokens_total')}[$__rate_interval]))"
    phases = f"avg by (phase) ({last('sft_trainer_phase_seconds')})"
    row(
        built,
        "Is it fast",
        graph("Real tokens per second, all ranks", "none", Query(tokens, NAME)),
        graph(
            "MFU, mean of the ranks",
            "percentunit",
            Query(f"avg by (namespace, sftjob) ({last('sft_trainer_mfu_ratio')})", NAME),
            text="docs/metrics.md has the formula. Absent where the device's peak is not known.",
        ),
        graph(
            "Padding",
            "percentunit",
            Query(f"{padded} / ({tokens} + {padded})", NAME),
            text="Share of the positions that were computed for nothing.",
        ),
        graph("Phases of a step, mean of the ranks", "s", Query(phases, "{{phase}}"), width=12, stacked=True),
        graph(
            "Time of a step",
            "s",
            Query(f"max by (namespace, sftjob) ({last('sft_trainer_step_seconds')})", NAME),
            width=12,
        ),
        heat(
            "Stragglers: forward pass against the median rank",
            "percentunit",
            Query(apart("sft_trainer_phase_seconds", ', phase="forward"'), "rank {{rank}} on {{node}}"),
            text="Ranks wait for each other backward; forward each has its own pace (not in ZeRO 3).",
        ),
        heat(
            "Waiting for data",
            "s",
            Query(last("sft_trainer_phase_seconds", ', phase="data_wait"'), "rank {{rank}} on {{node}}"),
        ),
    )


def _safety(built: Dashboard) -> None:
    age = f"time() - max by (namespace, sftjob) ({last('sft_trainer_last_checkpoint_timestamp_seconds')})"
    row(
        built,
        "What is wrong",
        graph("Age of the last verified checkpoint", "s", Query(age, NAME)),
        graph(
            "Time and size of checkpoints",
            "s",
            Query(of_job("sft_trainer_checkpoint_seconds"), "{{sftjob}} seconds"),
        ),
        graph("Size of checkpoints", "bytes", Query(of_job("sft_trainer_checkpoint_bytes"), NAME)),
        graph(
            "Memory of the process",
            "bytes",
            Query(last("sft_trainer_memory_bytes", ', kind="host"'), "rank {{rank}}"),
            Query(of_job("sftjob_operator_job_plan_memory_bytes"), "{{sftjob}} plan, per GPU or CPU process"),
        ),
        graph(
            "Memory of the GPU",
            "bytes",
            Query(last("sft_trainer_memory_bytes", ', kind=~"gpu.*"'), "rank {{rank}} {{kind}}"),
        ),
        graph(
            "Highest memory against the plan",
            "percentunit",
            Query(of_job("sftjob_operator_job_plan_memory_ratio"), NAME),
        ),
        graph(
            "Since the last step",
            "s",
            Query(f"time() - {last('sft_trainer_last_step_timestamp_seconds')}", "rank {{rank}} on {{node}}"),
        ),
        graph(
            "Failed attempts by class",
            "none",
            Query(
                f"sum by (sftjob, class) ({last('sftjob_operator_job_failed_attempts')})",
                "{{sftjob}} {{class}}",
            ),
        ),
        graph(
            "Start: where it went",
            "s",
            Query(f"avg by (phase) ({last('sft_trainer_start_seconds')})", "{{phase}}"),
            stacked=True,
        ),
    )
