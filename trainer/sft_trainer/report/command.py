"""`python -m sft_trainer report jobs/NAME`: writes report/report.html, and export/README.md if there is an export."""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from sft_trainer.checkpoint.files import write_atomically
from sft_trainer.report import card, page
from sft_trainer.report.collect import Material, collect

logger = logging.getLogger(__name__)


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the report; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m sft_trainer report", description="One page about a training, at any time."
    )
    parser.add_argument("folder", type=Path, help="jobs/NAME in a workspace")
    folder = parser.parse_args(arguments).folder.resolve()
    logging.basicConfig(level=logging.INFO, format="[report] %(message)s", stream=sys.stderr)
    if not folder.is_dir():
        sys.stderr.write(f"{folder} is no folder: give jobs/NAME of a workspace\n")
        return 2
    write(collect(folder))
    return 0


def write(material: Material) -> None:
    """The page, and the card where there is something to describe."""
    target = material.folder.page
    target.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(target, page.render(material, time.time()))
    logger.info("%s: %.0f kB", target, target.stat().st_size / 1e3)
    if material.config is not None and material.folder.export.is_dir():
        write_atomically(material.folder.export / "README.md", card.render(material, material.config))
