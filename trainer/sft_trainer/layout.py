"""Where things lie on the workspace volume: the only place that knows the names."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from sft_trainer import config

STAGING = ".staging-"  # begins the name of a checkpoint that is not whole yet
REPLACED = "-replaced"  # ends that of a whole one which a staged one takes the place of


def workspace() -> Path:
    """The mounted workspace, from the environment."""
    return Path(os.environ[config.ENV_WORKSPACE])


def within(root: Path, relative: str) -> Path:
    """`relative` under `root`, refused (ValueError) when it would leave it, through `..` or a link."""
    path = (root / relative).resolve()
    if not path.is_relative_to(root.resolve()):
        raise ValueError(f"{relative!r} leaves the workspace")
    return root / relative


def shown(path: Path) -> str:
    """`path` as users know it: relative to the workspace of this process if it lies in it, else its name."""
    root = os.environ.get(config.ENV_WORKSPACE)
    return path.relative_to(root).as_posix() if root and path.is_relative_to(root) else path.name


@dataclass(frozen=True)
class JobFolder:
    """jobs/<name> of one SFTJob."""

    root: Path

    @classmethod
    def of(cls, workspace: Path, name: str) -> JobFolder:
        """The folder of the SFTJob called `name`."""
        return cls(workspace / "jobs" / name)

    @property
    def owner(self) -> Path:
        """Uid and identity of the job whose checkpoints these are."""
        return self.root / "owner.json"

    @property
    def fence(self) -> Path:
        """The run that may commit; the last one started."""
        return self.root / "fence.json"

    @property
    def checkpoints(self) -> Path:
        """Committed checkpoints, one directory each, and the pointer `latest.json`."""
        return self.root / "checkpoints"

    @property
    def prepared(self) -> Path:
        """What the last preparation was asked and what it found."""
        return self.root / "prepared.json"

    @property
    def export(self) -> Path:
        """The finished model: a Hugging Face folder."""
        return self.root / "export"

    @property
    def report(self) -> Path:
        """Evaluation and training curves as files, and what is made of them."""
        return self.root / "report"

    @property
    def curves(self) -> Path:
        """A line for every optimizer step and every evaluation."""
        return self.report / "metrics.jsonl"

    @property
    def events(self) -> Path:
        """A line for everything else that happens to a training (events.py)."""
        return self.report / "events.jsonl"

    @property
    def samples(self) -> Path:
        """Answers of the base model and of the result."""
        return self.report / "samples.json"

    @property
    def page(self) -> Path:
        """The report, to be mailed."""
        return self.report / "report.html"

    @property
    def tensorboard(self) -> Path:
        """Event files of TensorBoard."""
        return self.report / "tensorboard"

    def logs(self, attempt: int) -> Path:
        """Rank logs of one attempt."""
        return self.root / "logs" / str(attempt)


def cache_root(workspace: Path) -> Path:
    """All caches: made by preparations, shared by all jobs of the workspace."""
    return workspace / ".sftjob" / "cache"


def trash(workspace: Path) -> Path:
    """What is being removed."""
    return workspace / ".sftjob" / "trash"


def collected(workspace: Path) -> Path:
    """What preparations have removed, a line for each; its time is that of the last collection."""
    return workspace / ".sftjob" / "collected.log"


def data_cache(workspace: Path) -> Path:
    """Tokenised data, by content hash, shared by all jobs of the workspace."""
    return cache_root(workspace) / "data"


def source_cache(workspace: Path) -> Path:
    """Data copied from stores on the network, by what the store says of its content."""
    return cache_root(workspace) / "sources"


def model_cache(workspace: Path) -> Path:
    """Downloaded or converted models, by content hash."""
    return cache_root(workspace) / "models"


def hub_copy(workspace: Path, repository: str, commit: str) -> Path:
    """The folder of a model of the Hugging Face hub at `commit`."""
    return model_cache(workspace) / f"{repository.replace('/', '--')}--{commit[:12]}"
