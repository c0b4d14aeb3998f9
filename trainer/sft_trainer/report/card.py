"""The model card: README.md of the export, which hubs read. Facts only: no prompt, answer or row of the data."""

from __future__ import annotations

import re
from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData

from sft_trainer.config import TrainConfig
from sft_trainer.layout import within
from sft_trainer.report import content, tables
from sft_trainer.report.collect import Material
from sft_trainer.report.page import environment, versions

_HUB = re.compile(r"(?:hf://)?(?P<id>[\w.-]+/[\w.-]+)@[0-9a-f]{7,40}")
_BREAKS_A_CELL = str.maketrans({"|": "\\|", "\n": " ", "\r": " "})


def render(material: Material, config: TrainConfig) -> str:
    """The card of the export of `config`'s training."""
    made = environment()
    made.filters["cell"] = lambda text: str(text).translate(_BREAKS_A_CELL)
    shown = [one for one in tables.tables(material) if one.title != "Result"]
    text = made.get_template("card.md").render(
        front_matter=_front_matter(material, config),
        name=config.job.name,
        summary=content.summary(material),
        base=content.model_name(config),
        base_id=base_id(config),
        tables=shown,
        sources=content.sources(material),
        versions=versions(material),
    )
    ModelCard(text)  # raises where hubs could not read it
    return text


def base_id(config: TrainConfig) -> str | None:
    """The base model's name on the hub, where it came from there."""
    found = _HUB.fullmatch(config.model.resolved or "")
    return found["id"] if found and (config.model.resolved or "").startswith("hf://") else None


def _front_matter(material: Material, config: TrainConfig) -> str:
    adapter = config.training.adapts and config.export.format == "Adapter"
    data = ModelCardData(
        base_model=base_id(config),
        license=_license(material, config),
        library_name="peft" if adapter else "transformers",
        pipeline_tag="text-generation",
        tags=["sft", "sftjob", "deepspeed", *(["lora"] if config.training.adapts else [])],
    )
    return str(data.to_yaml())


def _license(material: Material, config: TrainConfig) -> str | None:
    """As the base's own card has it; a name of a licence is not guessed from its text."""
    try:
        base = within(material.folder.root.parent.parent, config.model.directory)
        text = (Path(base) / "README.md").read_text(encoding="utf-8")
        stated = getattr(ModelCard(text, ignore_metadata_errors=True).data, "license", None)
    except (OSError, ValueError):
        return None
    return stated if isinstance(stated, str) else None
