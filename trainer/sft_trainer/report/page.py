"""The report as one HTML page that needs nothing else: no script, no font, no file, no network."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2

from sft_trainer.report import content, story, tables, words
from sft_trainer.report.collect import Material
from sft_trainer.report.figures import figures


def environment() -> jinja2.Environment:
    """Everything that a template shows is escaped: names, sources and answers are other people's words."""
    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    made.filters.update(moment=words.moment, where=content.where)
    return made


def render(material: Material, made: float) -> str:
    """The page."""
    return environment().get_template("page.html").render(**_shown(material), made=words.moment(made))


def _shown(material: Material) -> Mapping[str, Any]:
    state, config, prepared = content.headline(material), material.config, material.prepared
    mood = "good" if state.startswith("Finished") else "bad" if state.startswith("Failed") else "wait"
    return {
        "name": config.job.name if config else material.name,
        "folder": material.name,
        "headline": state,
        "mood": mood,
        "summary": content.summary(material),
        "tiles": list(content.tiles(material)),
        "figures": list(figures(material, story.times(material))),
        "samples": material.samples,
        "tables": list(tables.tables(material)),
        "sources": content.sources(material),
        "attempts": story.attempts(material),
        "configuration": config,
        "configuration_json": config.to_json(indent=2) if config else "",
        "data_hash": prepared.result.data.hash if prepared else "",
        "versions": versions(material),
    }


def versions(material: Material) -> dict[str, Any]:
    """Packages of the newest run."""
    begun = material.of_kind("begun")
    found = begun[-1].facts.get("versions") if begun else None
    return found if isinstance(found, dict) else {}
