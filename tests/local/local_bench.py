"""A directory with a job whose pods run the fake trainer, and ways to run it."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from sftjob_operator.cli.run import Options, run

ROOT = Path(__file__).resolve().parents[2]
FAKE = Path(__file__).with_name("fake_trainer.py")


@dataclass
class Bench:
    folder: Path
    name: str = "bot"
    env: dict[str, str] = field(default_factory=dict)
    spec: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        package = self.package
        package.mkdir(parents=True, exist_ok=True)
        (package / "__init__.py").touch()
        (package / "__main__.py").write_text(FAKE.read_text())

    @property
    def workspace(self) -> Path:
        return self.folder / "workspace"

    @property
    def package(self) -> Path:
        """The fake trainer; on the volume, because a pod sees nothing else of this machine."""
        return self.workspace / "fake" / "sft_trainer"

    @property
    def state(self) -> Path:
        return self.folder / "state"

    @property
    def job_folder(self) -> Path:
        return self.workspace / "jobs" / self.name

    def manifest(self) -> dict[str, Any]:
        fake = {"PYTHONPATH": "/workspace/fake", "REAL_TRAINER": f"{ROOT}/trainer", **self.env}
        env = [{"name": key, "value": value} for key, value in fake.items()]
        spec = {
            "model": {"path": "models/base"},
            "data": {"train": [{"path": "a.jsonl"}]},
            "training": {"globalBatchSize": 2},
            "workers": {"nodes": 2, "gpusPerNode": 0, "env": env},
            "prepare": {"env": env},
            "workspace": {"claimName": "w"},
            "failurePolicy": {"backoffSeconds": 0},
            **self.spec,
        }
        metadata = {"name": self.name}
        return {"apiVersion": "sftjob.dev/v1alpha1", "kind": "SFTJob", "metadata": metadata, "spec": spec}

    def file(self) -> Path:
        path = self.folder / f"{self.name}.yaml"
        path.write_text(json.dumps(self.manifest()))  # JSON is YAML
        return path

    def run(self, secrets: tuple[str, ...] = ()) -> tuple[int, str]:
        """In this process; the exit code and what was printed."""
        out = io.StringIO()
        options = Options(self.file(), self.workspace, self.state, None, secrets)
        return run(options, Console(file=out, width=200)), out.getvalue()

    def start(self, *program: str, **more: Any) -> subprocess.Popen[str]:
        """As a process of its own, which can be interrupted and killed; `program`: instead of the plain command."""
        words = ["--workspace", str(self.workspace), "--state", str(self.state)]
        return subprocess.Popen(
            [
                sys.executable,
                *(program or ("-m", "sftjob_operator.cli.app")),
                "run",
                str(self.file()),
                *words,
            ],
            text=True,
            env={**os.environ, "PYTHONPATH": f"{ROOT}/operator:{ROOT}/trainer"},
            start_new_session=True,
            **{"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, **more},
        )

    def pids(self, attempt: int) -> list[int]:
        """Of the ranks of an attempt, once both have started."""
        files = [self.job_folder / f"seen-{attempt}-{index}" for index in (0, 1)]
        until(lambda: all(file.exists() and file.read_text() for file in files), f"attempt {attempt} runs")
        return [json.loads(file.read_text())["pid"] for file in files]

    def job(self) -> dict[str, Any]:
        return json.loads((self.state / "objects" / "sftjob" / "default" / f"{self.name}.json").read_text())

    def step(self) -> int:
        try:
            return self.job()["status"]["progress"]["step"]
        except (OSError, ValueError, KeyError):
            return -1


def lives(pid: int) -> bool:
    """Whether the process is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def until(look: Callable[[], Any], what: str, seconds: float = 60) -> Any:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        value = look()
        if value:
            return value
        time.sleep(0.05)
    raise AssertionError(f"{what}: not within {seconds:.0f} s")


def finish(process: subprocess.Popen[str], number: signal.Signals | None = None) -> tuple[int, str]:
    """Wait for its end, after a signal; the exit code and what it printed."""
    if number is not None:
        process.send_signal(number)
    out, _ = process.communicate(timeout=90)
    return process.returncode, out
