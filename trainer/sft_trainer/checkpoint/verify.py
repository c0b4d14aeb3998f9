"""`python -m sft_trainer.checkpoint.verify DIR...`: compares every byte with the manifests."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

from sft_trainer.checkpoint import manifest

logger = logging.getLogger(__name__)


def main(directories: list[str]) -> int:
    """0 when every directory is a whole checkpoint, 1 otherwise, 2 when none was given."""
    if not directories:
        logger.error("usage: python -m sft_trainer.checkpoint.verify DIR...")
        return 2
    broken = 0
    for name in directories:
        try:
            wrong = manifest.problem(Path(name), every_byte=True)
        except OSError as error:
            wrong = f"it cannot be read: {error}"
        broken += wrong is not None
        logger.info("%s: %s", name, wrong or "every byte as written")
    return int(broken > 0)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    sys.exit(main(sys.argv[1:]))
