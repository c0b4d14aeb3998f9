"""After a preparation: what the platform lets go is collected, once a day for a volume, and never at the job's cost.

The result has been written by then. An error is a line in the log, a volume that is slow is waited for a minute, and a
pod that is told to end does; a collection may be killed at any moment, and the next one goes on from there.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
from contextlib import suppress
from pathlib import Path

from sft_trainer import collect, layout, outcome, uses
from sft_trainer.config import CollectConfig, ExitCode, JobIdentity

logger = logging.getLogger(__name__)

_LONGEST_SECONDS = 60.0
_PERIOD_SECONDS = 24 * 3600.0
_DAY = 24 * 3600


def tidy(file: Path, workspace: Path, job: JobIdentity, longest_seconds: float = _LONGEST_SECONDS) -> None:
    """Collect what `file` says, where there is one. Does not return where that takes too long: the process ends."""
    if not file.is_file():
        return
    before = signal.signal(signal.SIGTERM, lambda *_: os._exit(ExitCode.SUCCESS))
    worker = threading.Thread(target=_work, args=(file, workspace, job), daemon=True)
    worker.start()
    worker.join(longest_seconds)
    if worker.is_alive():
        logger.warning("the collection of caches takes long: the next one goes on with it")
        os._exit(ExitCode.SUCCESS)  # the thread would disturb the end of the interpreter
    signal.signal(signal.SIGTERM, before)


def _work(file: Path, workspace: Path, job: JobIdentity) -> None:
    try:
        policy = CollectConfig.model_validate_json(file.read_bytes())
        record = layout.collected(workspace)
        if _may_begin(record, policy):
            for item in collect.collect(workspace, policy):
                _say(item, record, job)
    except Exception as exc:  # the job has what it needs
        logger.warning("caches are not collected: %s: %s", type(exc).__name__, exc)


def _may_begin(record: Path, policy: CollectConfig) -> bool:
    """Whether none has begun within a day, so that a hundred jobs of a sweep look once. This one has begun then."""
    record.parent.mkdir(parents=True, exist_ok=True)
    now = uses.volume_time(record.parent)
    if not collect.is_current(policy, now):
        logger.info("this preparation waited for long and collects nothing: jobs may have come since")
        return False
    with suppress(FileNotFoundError):
        if now - record.stat().st_mtime < _PERIOD_SECONDS:
            return False
    record.touch()
    return True


def _say(item: collect.Item, record: Path, job: JobIdentity) -> None:
    words = f"{item.path}, {item.size / 2**30:.2f} GiB, unused for {item.unused_seconds // _DAY:.0f} days"
    logger.info("removed %s", words)
    with suppress(OSError), record.open("a", encoding="utf-8") as lines:  # the volume may be full
        lines.write(f"{outcome.now()} {words}, removed after the preparation of {job.namespace}/{job.name}\n")
