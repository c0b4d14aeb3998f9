"""After the verdict: it is written into the job's story, and a success gets its report.

The outcome stands by then, and nothing here changes it: what follows runs in processes of its own, each for a
bounded time, and ends at once when the pod is told to stop. After a failure there is no report (the next attempt
waits for the machine); it can be made from the volume at any time.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress

from sft_trainer.config import Outcome, TrainConfig
from sft_trainer.events import Events
from sft_trainer.launcher import tether
from sft_trainer.launcher.supervisor import Settings
from sft_trainer.layout import JobFolder

logger = logging.getLogger(__name__)

_VOLUME_SECONDS = 5.0  # for one line on a volume that may hang
_KILL_SECONDS = 5.0


class Aftermath:
    """What is left to do on the pod of rank 0. `pause` waits a moment and says whether to go on."""

    def __init__(
        self,
        folder: JobFolder,
        train: TrainConfig,
        environment: Mapping[str, str],
        settings: Settings,
        pause: Callable[[], bool],
    ) -> None:
        self._folder, self._train, self._settings = folder, train, settings
        self._environment, self._pause = environment, pause

    def follow(self, verdict: Outcome) -> None:
        """Write down how the attempt ended; after a success, make samples and report."""
        writing = threading.Thread(target=self._tell, args=(verdict,), daemon=True)
        writing.start()
        writing.join(_VOLUME_SECONDS)
        if verdict.train is None or writing.is_alive():
            return
        folder = str(self._folder.root)
        if self._train.evaluation.samples:
            self._run(self._settings.samples_seconds, "samples", "--once", folder)
        self._run(self._settings.report_seconds, "report", folder)

    def _tell(self, verdict: Outcome) -> None:
        said = verdict.model_dump(mode="json", exclude_none=True, exclude={"prepare", "checkpoints"})
        Events(self._folder.events, self._train.job.uid, self._train.attempt).append("ended", outcome=said)

    def _run(self, seconds: float, *words: str) -> None:
        """`python -m sft_trainer WORDS` for at most so long; whatever happens is a line in the log."""
        command = [sys.executable, "-m", "sft_trainer", *words]
        deadline = time.monotonic() + seconds
        try:
            process = subprocess.Popen(
                [sys.executable, "-I", "-S", tether.__file__, str(os.getpid()), *command],
                env=dict(self._environment),
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        except OSError as error:
            logger.warning("no %s: %s", words[0], error)
            return
        while process.poll() is None and time.monotonic() < deadline and self._pause():
            pass
        if process.poll() is None:
            logger.warning("no %s: not finished within %.0f s, or told to stop", words[0], seconds)
            _kill(process)
        elif process.returncode:
            logger.warning("no %s: exit code %d, see above", words[0], process.returncode)


def _kill(process: subprocess.Popen[bytes]) -> None:
    """With all it started; one that hangs in the kernel is left behind."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    with suppress(subprocess.TimeoutExpired):
        process.wait(_KILL_SECONDS)
