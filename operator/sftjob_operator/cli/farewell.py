"""The last words of `sftjob run`: where the result lies, or why there is none and where to look."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from sftjob_operator.api.objects import condition
from sftjob_operator.cluster.base import Manifest

LOG_LINES = 15


def job_folder(job: Manifest, workspace: Path) -> Path:
    """jobs/<name> of the workspace, as the trainer sees it."""
    below = str(job["spec"]["workspace"].get("subPath", ""))
    return workspace / below / "jobs" / str(job["metadata"]["name"])


def success(job: Manifest, workspace: Path) -> Iterator[str]:
    """What was reached and where it lies."""
    yield from reached(job)
    yield from places(job, workspace)


def reached(job: Manifest) -> Iterator[str]:
    """What was reached, and the folder of the export as the volume has it."""
    name, result = job["metadata"]["name"], job["status"].get("result", {})
    numbers = [f"{result['steps']} steps"] if "steps" in result else []
    labels = (("loss", "loss"), ("evalLoss", "eval loss"), ("perplexity", "perplexity"))
    numbers += [f"{label} {result[key]}" for key, label in labels if result.get(key) is not None]
    yield f"{name} is complete: {', '.join(numbers)}" if numbers else f"{name} is complete"


def places(job: Manifest, workspace: Path) -> Iterator[str]:
    """Every folder of the job that is there."""
    folder = job_folder(job, workspace)
    for what, below in (
        ("model to load", "export"),
        ("checkpoints", "checkpoints"),
        ("logs", "logs"),
        ("metrics", "report"),
    ):
        if (folder / below).exists():
            yield f"  {what:14}{_short(folder / below)}"


def failure(job: Manifest, workspace: Path, pods: Sequence[tuple[Manifest, Path]]) -> Iterator[str]:
    """Why, and the log of the pod that failed; `pods` are the failed ones with the logs of their containers."""
    found = condition(job, "Failed")
    yield f"{job['metadata']['name']} has failed: {found.get('reason')}: {found.get('message')}"
    if pods:
        path = _log(job, workspace, *pods[-1])
        yield f"log: {_short(path)}"
        yield from (f"  {line}" for line in _tail(path))


def again(job: Manifest, state: Path) -> str:
    """How to start over, when the job has come to its end or cannot be changed any more."""
    name = job["metadata"]["name"]
    return (
        f"to start again: sftjob delete {name} --state {_short(state)}, and the same command: the same model, data "
        "and seed go on from the checkpoints in the workspace, anything else needs spec.checkpoint.onExisting: "
        "StartFresh or another metadata.name"
    )


def _log(job: Manifest, workspace: Path, pod: Manifest, container_log: Path) -> Path:
    """The log of the rank that failed where the pod named it, else the container's."""
    attempt = pod["metadata"].get("labels", {}).get("sftjob.dev/attempt")
    state = pod["status"]["containerStatuses"][0]["state"].get("terminated", {})
    try:
        rank = json.loads(state.get("message", "")).get("rank")
    except (ValueError, AttributeError):
        rank = None
    of_rank = job_folder(job, workspace) / "logs" / str(attempt) / f"rank-{rank}.log"
    return of_rank if rank is not None and of_rank.is_file() else container_log


def _tail(path: Path) -> list[str]:
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 16384))
            return file.read().decode(errors="replace").splitlines()[-LOG_LINES:]
    except OSError:
        return []


def _short(path: Path) -> str:
    """Relative to where the person is, if it lies there."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)
