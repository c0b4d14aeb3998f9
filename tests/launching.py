"""Runs real launchers with a few lines of Python in place of the ranks."""

from __future__ import annotations

import json
import os
import re
import select
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from sft_trainer.config import Outcome

ROOT = Path(__file__).resolve().parent.parent

_DRIVER = """
import json, logging, resource, sys
from sft_trainer.launch import launch
from sft_trainer.launcher.supervisor import Settings
logging.basicConfig(level=logging.INFO, format="[launcher] %(message)s")
given = json.loads(sys.argv[1])
if "file_size_limit" in given:
    resource.setrlimit(resource.RLIMIT_FSIZE, (given["file_size_limit"],) * 2)
sys.exit(launch(settings=Settings(**given["settings"]), command=given["command"], port=given["port"]))
"""

_RANK = """
import json, os, signal, subprocess, sys, time
rank = int(os.environ["RANK"])
run = os.environ["SFTJOB_RUN"]
def finish(outcome="Succeeded", reason="Succeeded", **more):
    with open(f"{run}/ranks/{rank}.json", "w") as file:
        json.dump({"outcome": outcome, "reason": reason, **more}, file)
def stop_with(code):
    signal.signal(signal.SIGTERM, lambda *_: os._exit(code))
def forever():
    while True:
        signal.pause()
"""

Json = dict[str, Any]


def train_config(nodes: int = 1, processes: int = 1, **changes: Any) -> Json:
    """A valid train.json."""
    return {
        "job": {"namespace": "default", "name": "bot", "uid": "u1"},
        "attempt": 1,
        "identity": "abc",
        "model": {"directory": "models/tiny"},
        "data": {"cache": "cache", "maxLength": 64, "packing": "BestFit"},
        "training": {
            "method": "Full",
            "maxSteps": 2,
            "globalBatchSize": nodes * processes,
            "microBatchSize": 1,
            "gradientAccumulationSteps": 1,
            "learningRate": 1e-4,
            "scheduler": {"type": "Constant", "warmupSteps": 0, "minLearningRate": 0},
            "optimizer": {"type": "AdamW", "betas": [0.9, 0.98], "eps": 1e-6, "weightDecay": 0},
            "maxGradNorm": 1.0,
            "precision": "fp32",
            "seed": 1,
        },
        "deepspeed": {"zeroStage": 2, "activationCheckpointing": "None"},
        "topology": {"nodes": nodes, "processesPerNode": processes, "accelerator": "cpu"},
        "checkpoint": {"keepLast": 1, "onExisting": "Resume"},
        "evaluation": {},
        "export": {"format": "Merged"},
        **changes,
    }


class Pod:
    """One node: its folders, its launcher, and what came of it."""

    def __init__(self, root: Path, index: int = 0, nodes: int = 1, processes: int = 1) -> None:
        self.workspace = root / "workspace"
        self.config = root / "config"
        self.run = root / f"run-{index}"
        self.termination_log = root / f"termination-{index}"
        self.address = f"127.0.0.{2 + index}"
        self.output: list[str] = []
        self._hosts = root / "hosts"
        for folder in (self.workspace, self.config, self.run):
            folder.mkdir(parents=True, exist_ok=True)
        names = [f"bot-1-{node}.bot" for node in range(nodes)]
        self._hosts.write_text("".join(f"127.0.0.{2 + node} {name}\n" for node, name in enumerate(names)))
        (self.config / "hostfile").write_text("".join(f"{name} slots={processes}\n" for name in names))
        (self.config / "train.json").write_text(json.dumps(train_config(nodes, processes)))
        self.environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(ROOT / "trainer"), str(ROOT / "operator")]),
            "SFTJOB_WORKSPACE": str(self.workspace),
            "SFTJOB_CONFIG": str(self.config),
            "SFTJOB_RUN": str(self.run),
            "SFTJOB_TERMINATION_LOG": str(self.termination_log),
            "SFTJOB_POD_IP": self.address,
            "SFTJOB_NODE_NAME": f"node-{index}",
            "SFTJOB_HOSTS": str(self._hosts),
            "JOB_COMPLETION_INDEX": str(index),
        }
        self._folder = root

    @contextmanager
    def started(
        self, rank: str, *, port: int = 0, settings: Json | None = None, **more: Any
    ) -> Iterator[Pod]:
        """The launcher with `rank` (Python source) as each of its ranks; killed at the end if it lives."""
        script = self._folder / "rank.py"
        script.write_text(_RANK + rank)
        command = [sys.executable, "-u", str(script)]
        given = {"settings": settings or {}, "command": command, "port": port, **more}
        with ExitStack() as stack:
            self.process = stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-c", _DRIVER, json.dumps(given)],
                    env=self.environment,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                )
            )
            stack.callback(self.process.kill)  # does nothing once it has ended
            yield self

    def ends(self, rank: str, **more: Any) -> Outcome:
        """Run to the end: the termination message, whose exit code is checked against the real one."""
        with self.started(rank, **more):
            return self.outcome()

    def outcome(self) -> Outcome:
        """The termination message after the launcher has ended."""
        assert self.process.stdout is not None
        self.output += self.process.stdout.read().splitlines()
        code = self.process.wait()
        outcome = Outcome.model_validate_json(self.termination_log.read_bytes())
        assert outcome.exit_code == code, "\n".join(self.output)
        return outcome

    def says(self, pattern: str) -> re.Match[str]:
        """Read the pod's log up to the line that `pattern` is found in."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.output.append(line.rstrip("\n"))
            if match := re.search(pattern, line):
                return match
        raise AssertionError(f"no line with {pattern!r} in:\n" + "\n".join(self.output))

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the launcher."""
        self.process.send_signal(number)

    def get(self, path: str, port: int) -> tuple[int, str]:
        """Status and body of a page of the launcher."""
        try:
            with urllib.request.urlopen(f"http://{self.address}:{port}{path}", timeout=30) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()


@contextmanager
def watched(process_id: int) -> Iterator[select.poll]:
    """A poll object that is ready when the process has ended."""
    descriptor = os.pidfd_open(process_id)
    try:
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        yield poll
    finally:
        os.close(descriptor)
