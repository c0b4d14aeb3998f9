"""The tables of the report, each a list of facts with a note where a bare number says too little."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from sft_trainer.config import Outcome, TrainConfig
from sft_trainer.report import story, words
from sft_trainer.report.collect import Material
from sft_trainer.report.content import Fact, model_name
from sft_trainer.report.words import perplexity


@dataclass(frozen=True)
class Table:
    """A titled list of facts."""

    title: str
    facts: list[Fact]


def tables(material: Material) -> Iterator[Table]:
    """All tables for which there is something to say, in order."""
    config = material.config
    if config is None:
        return
    yield Table("Model", list(_model(material, config)))
    yield Table("Data", list(_data(material, config)))
    yield Table("Training", list(_training(config)))
    yield Table("Plan against truth", list(_plan(material, config)))
    if material.evaluations:
        yield Table("Evaluation on held-out rows", list(_evaluation(material)))
    yield Table("Speed and time", list(_time(material)))
    outcome = material.outcome
    if outcome is not None and outcome.train is not None:
        yield Table("Result", list(_result(outcome)))


def _model(material: Material, config: TrainConfig) -> Iterator[Fact]:
    yield Fact("base model", model_name(config))
    if material.prepared is not None:
        facts = material.prepared.result.model
        yield Fact(
            "architecture", facts.architecture, f"{facts.layers} layers, hidden size {facts.hidden_size}"
        )
        yield Fact("parameters", words.parameters(facts.parameters))
    template = config.model.chat_template
    if template is not None:
        yield Fact("chat template", template.path or f"preset {template.preset}", "replaces the model's own")


def _data(material: Material, config: TrainConfig) -> Iterator[Fact]:
    if material.prepared is None:
        yield Fact("training rows", words.count(len(material.lengths) or None))
    else:
        data, asked = material.prepared.result.data, material.prepared.config.data
        yield Fact("training rows", words.count(data.rows))
        yield Fact("held-out rows", words.count(data.eval_rows))
        yield Fact("tokens", words.count(data.tokens), "of the training rows")
        share = data.supervised_tokens / data.tokens if data.tokens else None
        yield Fact(
            "supervised",
            words.percent(share),
            f"{words.count(data.supervised_tokens)} tokens carry loss ({asked.loss_on})",
        )
        yield Fact(
            "truncated rows", words.count(data.truncated_rows), f"longest row {data.longest_row:,} tokens"
        )
        left = (
            f"{data.short_rows:,} too short, {data.dropped_rows:,} too long, {data.skipped_rows:,} skipped, "
            f"{data.duplicate_rows:,} duplicates"
        )
        yield Fact("left out", left)
        yield Fact(
            "sequences",
            words.count(data.packs),
            f"{data.fill_percent} % full, of at most {config.data.max_length:,} tokens",
        )
    yield Fact(
        "token cache", config.data.cache.rpartition("/")[2], "hash of all rows, tokenizer and settings"
    )


def _training(config: TrainConfig) -> Iterator[Fact]:
    chosen = config.training
    yield Fact("method", chosen.method)
    if chosen.lora is not None:
        yield Fact(
            chosen.lora.variant,
            f"rank {chosen.lora.rank}, alpha {chosen.lora.alpha}",
            f"dropout {chosen.lora.dropout:g}, on {', '.join(chosen.lora.target_modules)}",
        )
    length = [(chosen.epochs, "epochs"), (chosen.max_steps, "steps"), (chosen.max_tokens, "tokens")]
    yield Fact(
        "length", next((f"{value:,} {unit}" for value, unit in length if value is not None), words.ABSENT)
    )
    yield Fact("global batch", f"{chosen.global_batch_size} sequences")
    yield Fact(
        "learning rate",
        f"{chosen.learning_rate:g}",
        f"{chosen.scheduler.type}, {chosen.scheduler.warmup_steps} steps of warm-up, "
        f"down to {chosen.scheduler.min_learning_rate:g}",
    )
    adam = chosen.optimizer
    yield Fact(
        "optimizer",
        adam.type,
        f"betas {adam.betas[0]:g} and {adam.betas[1]:g}, eps {adam.eps:g}, weight decay {adam.weight_decay:g}",
    )
    yield Fact("gradient clipping", f"{chosen.max_grad_norm:g}")
    yield Fact("seed", str(chosen.seed))


def _plan(material: Material, config: TrainConfig) -> Iterator[Fact]:
    speeds, topology, chosen = config.deepspeed, config.topology, config.training
    begun = material.of_kind("begun")[-1].facts
    nodes = "1 node" if topology.nodes == 1 else f"{topology.nodes} nodes"
    yield Fact("ranks", f"{topology.world_size} on {nodes}", str(begun.get("device", "")))
    yield Fact(
        "ZeRO stage",
        str(speeds.zero_stage),
        f"offload: optimizer {speeds.offload_optimizer}, parameters {speeds.offload_parameters}",
    )
    micro = f"{chosen.micro_batch_size} × {chosen.gradient_accumulation_steps} × {topology.world_size}"
    yield Fact("micro-batch × accumulation × ranks", micro)
    yield Fact("activation checkpointing", speeds.activation_checkpointing)
    yield Fact("precision", str(begun.get("precision", chosen.precision)), f"asked for: {chosen.precision}")
    yield from _memory(config, story.peak_bytes(material))
    if config.planned is not None and config.planned.decided:
        yield Fact("chosen by the planner", ", ".join(config.planned.decided))


def _memory(config: TrainConfig, peak: int | None) -> Iterator[Fact]:
    planned = config.planned
    if planned is not None:
        yield Fact(
            "memory per rank, planned",
            words.size(planned.memory_bytes),
            "" if planned.available_bytes is None else f"{words.size(planned.available_bytes)} are there",
        )
    note = "known when all steps are done" if peak is None else ""
    if peak is not None and planned is not None and planned.memory_bytes:
        note = f"{words.percent(peak / planned.memory_bytes)} of the plan"
    yield Fact("memory per rank, measured peak", words.size(peak), note)


def _evaluation(material: Material) -> Iterator[Fact]:
    before, after = story.before_and_after(material)
    yield Fact(
        "loss before", words.decimal(before, 4), "base model" if before is not None else "not measured"
    )
    yield Fact("loss after", words.decimal(after, 4), words.change(before, after))
    if before is not None:
        yield Fact("perplexity before", words.decimal(perplexity(before), 3))
    if after is not None:
        yield Fact(
            "perplexity after",
            words.decimal(perplexity(after), 3),
            words.change(perplexity(before) if before is not None else None, perplexity(after)),
        )
    yield Fact("evaluations", words.count(len(material.evaluations)))


def _time(material: Material) -> Iterator[Fact]:
    pace, spent = story.speed(material), story.times(material)
    yield Fact(
        "tokens per second",
        words.count(pace.tokens_per_second),
        f"{words.count(pace.supervised_per_second)} of them supervised",
    )
    yield Fact("median step", words.duration(pace.median_step_seconds))
    yield Fact("goodput", words.percent(spent.goodput), "time of steps that are in the result")
    for label, seconds in (
        ("all the time", spent.total),
        ("steps", spent.steps),
        ("steps done again", spent.repeated),
        ("evaluation", spent.evaluation),
        ("checkpoints", spent.checkpoints),
        ("starting", spent.starting),
        ("export and the rest", spent.rest),
        ("waiting between attempts, not counted", spent.waiting),
    ):
        yield Fact(label, words.duration(seconds))


def _result(outcome: Outcome) -> Iterator[Fact]:
    train = outcome.train
    if train is None:
        return
    yield Fact("export", train.export_directory, words.size(train.export_bytes))
    yield Fact("exported step", words.count(train.exported_step), f"of {words.count(train.steps)}")
    if train.planned_steps and train.steps < train.planned_steps:
        yield Fact("stopped early", f"{train.planned_steps:,} steps were planned")
