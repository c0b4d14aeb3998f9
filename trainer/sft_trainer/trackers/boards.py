"""The tools themselves. Each is imported in its own thread, and only where it is wanted."""

from __future__ import annotations

import importlib.util
import logging
import os
import time
from collections.abc import Iterator, Mapping
from typing import Any

from sft_trainer.trackers.base import Maker, TrackedRun, Tracker, Values

logger = logging.getLogger(__name__)

_PROJECT = "sftjob"  # where the environment names none
_TAG = "sftjob.uid"
_FLUSH_SECONDS = 30  # so much is lost of a run that is killed


def makers(environment: Mapping[str, str] | None = None) -> Iterator[tuple[str, Maker]]:
    """TensorBoard, and what `environment` asks for and is installed."""
    given = os.environ if environment is None else environment
    yield "TensorBoard", TensorBoard
    if (given.get("WANDB_API_KEY") or given.get("WANDB_MODE")) and given.get("WANDB_MODE") != "disabled":
        yield from _if_installed("Weights & Biases", "wandb", WeightsAndBiases)
    if given.get("MLFLOW_TRACKING_URI"):
        yield from _if_installed("MLflow", "mlflow", MLflow)


def _if_installed(name: str, module: str, make: Maker) -> Iterator[tuple[str, Maker]]:
    if importlib.util.find_spec(module) is None:
        logger.warning(
            "%s is asked for, but the image has no %s: install it in an image of yours", name, module
        )
        return
    yield name, make


class TensorBoard(Tracker):
    """Event files in jobs/<name>/report/tensorboard; what a resumed run does again replaces what it did."""

    def __init__(self, run: TrackedRun) -> None:
        from torch.utils.tensorboard import SummaryWriter

        again = 0 if run.resumed_from is None else run.resumed_from + 1
        self._writer: Any = SummaryWriter(
            str(run.folder / "tensorboard"), purge_step=again, flush_secs=_FLUSH_SECONDS
        )

    def log(self, step: int, values: Values) -> None:
        """One scalar each."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Write what waits."""
        self._writer.close()


class WeightsAndBiases(Tracker):
    """A run whose id is the job's uid. W&B ignores steps that it has seen, and repeated ones are bit-equal."""

    def __init__(self, run: TrackedRun) -> None:
        import wandb

        self._run: Any = wandb.init(
            id=run.uid,
            name=run.name,
            project=os.environ.get("WANDB_PROJECT", _PROJECT),
            config=dict(run.config),
            resume="allow",
            dir=str(run.folder),
            settings=wandb.Settings(console="off", silent=True),
        )

    def log(self, step: int, values: Values) -> None:
        """All values of a step together."""
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        """Upload what waits."""
        self._run.finish()


class MLflow(Tracker):
    """A run that is found again by the job's uid in a tag."""

    def __init__(self, run: TrackedRun) -> None:
        # Its own defaults try for minutes.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        import mlflow

        self._metric: Any = mlflow.entities.Metric
        self._client: Any = mlflow.MlflowClient()
        experiment = self._experiment(os.environ.get("MLFLOW_EXPERIMENT_NAME", _PROJECT))
        found = self._client.search_runs([experiment], filter_string=f"tags.`{_TAG}` = '{run.uid}'")
        if found:
            self._id = found[0].info.run_id
            self._client.update_run(self._id, status="RUNNING")
            return
        made = self._client.create_run(experiment, run_name=run.name, tags={_TAG: run.uid})
        self._id = made.info.run_id
        for name, value in _flat(run.config):
            self._client.log_param(self._id, name, value[:500])

    def log(self, step: int, values: Values) -> None:
        """All values of a step in one request."""
        now = int(time.time() * 1000)
        metrics = [self._metric(name, value, now, step) for name, value in values.items()]
        self._client.log_batch(self._id, metrics=metrics)

    def close(self) -> None:
        """The end of this run of the process; a later attempt goes on with it."""
        self._client.set_terminated(self._id)

    def _experiment(self, name: str) -> str:
        found = self._client.get_experiment_by_name(name)
        return str(found.experiment_id if found else self._client.create_experiment(name))


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, str(value)
