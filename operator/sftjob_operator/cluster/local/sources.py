"""Where local pods find our packages: nothing to say when they are installed, the source roots when they are not."""

from __future__ import annotations

import sysconfig
from pathlib import Path

import sftjob_operator
from sft_trainer import config


def roots() -> list[str]:
    """Directories for PYTHONPATH."""
    installed = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    found = [str(Path(module.__file__ or "").resolve().parents[1]) for module in (config, sftjob_operator)]
    return [root for root in dict.fromkeys(found) if root not in installed]
