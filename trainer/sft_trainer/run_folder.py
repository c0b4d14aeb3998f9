"""Names inside `$SFTJOB_RUN`, the scratch folder in memory that a launcher and its ranks share.

Ranks write here (metrics, progress, final markers) and the launcher reads, so that a busy or dead rank can
never block a scrape. Nothing here survives the pod; what must survive lies on the workspace (layout.py).
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from sft_trainer import config


@dataclass(frozen=True)
class RunFolder:
    """The scratch folder of one pod."""

    root: Path

    @classmethod
    def from_environment(cls) -> RunFolder:
        """The folder named by `$SFTJOB_RUN`."""
        return cls(Path(os.environ[config.ENV_RUN]))

    @property
    def metrics(self) -> Path:
        """Files of prometheus_client's multiprocess mode, one per rank and kind of metric."""
        return self.root / "metrics"

    @property
    def ranks(self) -> Path:
        """Final markers of the ranks."""
        return self.root / "ranks"

    def marker(self, rank: int) -> Path:
        """The `config.Outcome` which global rank `rank` writes as its last act."""
        return self.ranks / f"{rank}.json"

    @property
    def progress(self) -> Path:
        """The `config.Progress` of rank 0, replaced after every step."""
        return self.root / "progress.json"
