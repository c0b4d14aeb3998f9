"""Builds the reporter of a rank, and those who listen to that of rank 0."""

from __future__ import annotations

import json

from sft_trainer.checkpoint.fence import Fence
from sft_trainer.config import Precision, Progress, TrainConfig
from sft_trainer.distributed import World
from sft_trainer.events import Chronicle, Events
from sft_trainer.layout import JobFolder
from sft_trainer.listening import Audience
from sft_trainer.metrics import Metrics
from sft_trainer.outcome import now
from sft_trainer.progress import ProgressFile
from sft_trainer.reporting import Journal, Reporter
from sft_trainer.run_folder import RunFolder
from sft_trainer.starting import Start
from sft_trainer.trackers.base import TrackedRun, Tracking
from sft_trainer.trackers.boards import makers
from sft_trainer.versions import device, versions


def reporter(
    config: TrainConfig,
    folder: JobFolder,
    world: World,
    mine: Fence,
    chosen: Precision,
    journal: Journal,
    start: Start,
) -> Reporter:
    """The reporter of this rank."""
    return Reporter(
        speaks=world.is_first,
        progress=Progress(attempt=config.attempt, run_id=mine.run_id, state="Starting", time=now()),
        file=ProgressFile(RunFolder.from_environment().progress),
        curves=folder.curves,
        metrics=Metrics(sftjob=config.job.name, attempt=config.attempt, rank=world.rank),
        journal=journal,
        start=start,
        audience=_audience(config, folder, world, mine, chosen) if world.is_first else Audience(),
    )


def _audience(
    config: TrainConfig, folder: JobFolder, world: World, mine: Fence, chosen: Precision
) -> Audience:
    settings = json.loads(config.to_json())
    about = {
        "run_id": mine.run_id,
        "config": settings,
        "precision": chosen,
        "world_size": world.size,
        "device": device(world.device),
        "versions": versions(),
    }

    def tracked(resumed_from: int | None) -> TrackedRun:
        return TrackedRun(config.job.uid, config.job.name, folder.report, settings, resumed_from)

    chronicle = Chronicle(Events(folder.events, config.job.uid, config.attempt), about)
    return Audience([chronicle, Tracking(tracked, makers())])
