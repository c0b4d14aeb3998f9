"""What the report says, as plain words and tables: the page and the model card show it in their own way.

Words of users and models pass through here as they are; escaping is the templates' business.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from sft_trainer.config import DataSource, TrainConfig
from sft_trainer.report import story, words
from sft_trainer.report.collect import Material
from sft_trainer.report.words import perplexity


@dataclass(frozen=True)
class Fact:
    """A line of a table."""

    label: str
    value: str
    note: str = ""


def headline(material: Material) -> str:
    """The state in one word or two."""
    outcome = material.outcome
    if outcome is None:
        return "Not finished" if material.events or material.steps else "Not begun"
    if outcome.outcome == "Failed":
        return f"Failed: {outcome.reason}"
    train = outcome.train
    early = train is not None and train.planned_steps is not None and train.steps < train.planned_steps
    return "Finished early" if early else "Finished"


def summary(material: Material) -> str:
    """The training in two or three sentences."""
    config, prepared = material.config, material.prepared
    base = model_name(config)
    done = material.steps[-1]["step"] if material.steps else 0
    total = next((e.facts.get("total_steps") for e in reversed(material.of_kind("begun"))), None)
    rows = words.count(prepared.result.data.rows if prepared else len(material.lengths) or None)
    adapters = config is not None and config.training.adapts
    what = f"Adapters for {base} were trained" if adapters else f"{base} was trained"
    said = [f"{what} on {rows} conversations, {done:,} of {words.count(total)} steps"]
    took = story.times(material).total
    if took:
        said[0] += f" in {words.duration(took)}"
    before, after = story.before_and_after(material)
    if before is not None and after is not None:
        said.append(
            f"Perplexity on held-out rows went from {perplexity(before):,.2f} (base model) "
            f"to {perplexity(after):,.2f}"
        )
    outcome = material.outcome
    if outcome is not None and outcome.outcome == "Failed":
        said.append(f"It ended with {outcome.reason}: {outcome.message}")
    elif outcome is None and material.heard:
        said.append(f"It was last heard of at {words.moment(material.heard)}")
    return ". ".join(said) + "."


def tiles(material: Material) -> Iterator[Fact]:
    """The figures that are looked at first."""
    losses = [point.get("loss") for point in material.steps]
    last = next((found for loss in reversed(losses) if (found := story.number(loss)) is not None), None)
    before, after = story.before_and_after(material)
    pace, spent = story.speed(material), story.times(material)
    yield Fact("training loss", words.decimal(last), "last step")
    if after is not None:
        yield Fact("held-out loss", words.decimal(after), f"base model {words.decimal(before)}")
        yield Fact("perplexity", words.decimal(perplexity(after), 2), words.change(
            None if before is None else perplexity(before), perplexity(after)))  # fmt: skip
    yield Fact("tokens per second", words.count(pace.tokens_per_second), f"{words.count(pace.tokens)} in all")
    yield Fact("goodput", words.percent(spent.goodput), f"of {words.duration(spent.total)}")


def model_name(config: TrainConfig | None) -> str:
    """The base model, as people call it."""
    if config is None:
        return "Unknown model"
    return (config.model.resolved or config.model.directory).removeprefix("hf://")


def sources(material: Material) -> list[tuple[str, DataSource]]:
    """Every data source with its part: training or held-out."""
    if material.prepared is None:
        return []
    data = material.prepared.config.data
    return [("training", one) for one in data.train] + [
        ("held-out", one) for one in (data.eval.sources if data.eval else ())
    ]


def where(source: DataSource) -> str:
    """Where rows come from."""
    return source.path or source.uri or "inline in the SFTJob"
