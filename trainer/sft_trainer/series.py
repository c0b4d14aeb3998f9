"""The time series of a rank, declared.

prometheus_client keeps them in memory-mapped files ($PROMETHEUS_MULTIPROC_DIR, set by the launcher before a
rank starts). Gauges are of mode `mostrecent`, so there is no `pid` label and none appears before its first value;
counters start at zero with every attempt, which `rate()` takes as a reset.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge

REGISTRY = CollectorRegistry()
LABELS = ("sftjob", "attempt", "rank", "node")


def _gauge(name: str, text: str, extra: tuple[str, ...] = ()) -> Gauge:
    return Gauge(
        f"sft_trainer_{name}", text, LABELS + extra, registry=REGISTRY, multiprocess_mode="mostrecent"
    )


def _counter(name: str, text: str) -> Counter:
    return Counter(f"sft_trainer_{name}", text, LABELS, registry=REGISTRY)


INFO = _gauge(
    "info",
    "Always 1; version, precision and attention of the run are in the labels.",
    ("version", "precision", "attention"),
)
TOTAL_STEPS = _gauge("total_steps", "Optimizer steps of the whole training.")
STEP = _gauge("step", "Optimizer steps finished, those before a resume included.")
RESUMED_STEP = _gauge(
    "resumed_from_step", "Step of the checkpoint that this attempt went on from; 0 for a fresh start."
)
LAST_STEP = _gauge("last_step_timestamp_seconds", "Unix time at which the last optimizer step ended.")
LOSS = _gauge("loss", "Mean loss per supervised token of the last global batch.")
LEARNING_RATE = _gauge("learning_rate", "Learning rate of the last optimizer step.")
GRADIENT_NORM = _gauge("gradient_norm", "Global gradient norm of the last optimizer step, before clipping.")
TOKENS_PER_SECOND = _gauge("tokens_per_second", "Real tokens of this rank per second of the last step.")
STEP_SECONDS = _gauge("step_seconds", "Wall time of the last optimizer step.")
PHASE_SECONDS = _gauge("phase_seconds", "Wall time of one phase of the last optimizer step.", ("phase",))
PEAK_FLOPS = _gauge(
    "peak_flops", "FLOP per second that the rank's device can do at most; absent where nobody knows."
)
MFU = _gauge(
    "mfu_ratio", "Model FLOP per second of the last optimizer step, as a share of the device's peak."
)
LOSS_SCALE = _gauge("loss_scale", "Factor of the losses of the last optimizer step; only in fp16.")
START_SECONDS = _gauge("start_seconds", "Wall time of one phase of this rank's start.", ("phase",))
EVAL_LOSS = _gauge("eval_loss", "Mean loss per supervised token of the held-out rows.")
EVAL_PERPLEXITY = _gauge("eval_perplexity", "exp of the evaluation loss.")
EVAL_SECONDS = _gauge("eval_seconds", "Wall time of the last evaluation.")
CHECKPOINT_SECONDS = _gauge("checkpoint_seconds", "Wall time of the last committed checkpoint.")
CHECKPOINT_BYTES = _gauge(
    "checkpoint_bytes", "Size of the last committed checkpoint, every byte of it verified."
)
CHECKPOINT_STEP = _gauge("last_checkpoint_step", "Step of the last committed checkpoint.")
CHECKPOINT_TIME = _gauge("last_checkpoint_timestamp_seconds", "Unix time of the last committed checkpoint.")
MEMORY = _gauge("memory_bytes", "Memory of this rank now.", ("kind",))
PEAK_MEMORY = _gauge("memory_peak_bytes", "Highest memory of this rank so far.", ("kind",))
TOKENS = _counter("tokens", "Real tokens trained on by this rank since the attempt started.")
SUPERVISED = _counter(
    "supervised_tokens", "Tokens that carried loss, by this rank, since the attempt started."
)
PADDED = _counter("padded_tokens", "Padding computed by this rank since the attempt started.")
FLOPS = _counter("model_flops", "Model FLOPs done by this rank since the attempt started.")
SKIPPED = _counter(
    "skipped_steps", "Optimizer steps that overflowed in fp16 and were repeated, since the attempt started."
)
