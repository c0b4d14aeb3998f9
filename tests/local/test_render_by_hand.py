"""What `sftjob render` prints, done by hand: preparation, then DeepSpeed's own launcher with the printed command."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML
from typer.testing import CliRunner

import tiny
from gang import fresh_address
from sft_trainer import config
from sftjob_operator.api import names
from sftjob_operator.cli import app
from sftjob_operator.desired.podspec import CONFIG, RUN, WORKSPACE

pytestmark = [pytest.mark.processes, pytest.mark.timeout(300)]
PROGRAMS = Path(sys.executable).parent


def render(file: Path, *words: str) -> str:
    done = CliRunner().invoke(app.app, ["render", str(file), *words])
    assert done.exit_code == 0, done.output
    return done.output


def write_files(text: str, name: str, folder: Path) -> None:
    """The files of a rendered ConfigMap, as a mount would show them."""
    documents = YAML(typ="safe", pure=True).load_all(text)
    (data,) = [
        one["data"]
        for one in documents
        if one["kind"] == "ConfigMap" and one["metadata"]["name"].startswith(name)
    ]
    for key, content in data.items():
        (folder / key).write_text(content)


def test_the_printed_deepspeed_command_trains_the_job(tmp_path: Path):
    real = {path: tmp_path / path.strip("/").replace("/", "-") for path in (CONFIG, WORKSPACE, RUN)}
    for folder in real.values():
        folder.mkdir()
    tiny.model(real[WORKSPACE] / "models" / "tiny")
    tiny.chats(real[WORKSPACE] / "datasets" / "chats.jsonl")
    spec = {
        **tiny.spec(maxSteps=2),
        "workers": {"nodes": 1, "gpusPerNode": 0},
        "workspace": {"claimName": "w"},
    }
    head = {"apiVersion": "sftjob.dev/v1alpha1", "kind": "SFTJob", "metadata": {"name": "hand"}}
    file = tmp_path / "job.yaml"
    file.write_text(json.dumps({**head, "spec": spec}))
    message = tmp_path / "message"
    env = {
        **os.environ,
        "PATH": f"{PROGRAMS}:{os.environ['PATH']}",
        config.ENV_CONFIG: str(real[CONFIG]),
        config.ENV_WORKSPACE: str(real[WORKSPACE]),
        config.ENV_TERMINATION_LOG: str(message),
        "DS_ACCELERATOR": "cpu",
    }
    write_files(render(file), "hand-prepare-", real[CONFIG])
    subprocess.run([sys.executable, "-m", "sft_trainer", "prepare"], env=env, check=True, capture_output=True)
    facts = tmp_path / "facts.json"
    facts.write_text(json.dumps(json.loads(message.read_text())["prepare"]))

    text = render(file, "--facts", str(facts))
    write_files(text, "hand-1", real[CONFIG])
    host, address = names.host("hand", 1, 0), fresh_address()
    script = "\n".join(re.findall(r"^#   (.*)$", text, re.MULTILINE)).replace(host, address)
    for path, folder in real.items():  # where a pod has mounts, and the name of its host
        script = re.sub(rf"{re.escape(path)}(?![-\w])", str(folder), script)
    hostfile = real[CONFIG] / config.HOSTFILE
    hostfile.write_text(hostfile.read_text().replace(host, address))
    done = subprocess.run(
        ["bash", "-euc", script], env={**env, "JOB_COMPLETION_INDEX": "0"}, cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, script + done.stdout[-3000:] + done.stderr[-3000:]
    assert (real[WORKSPACE] / "jobs" / "hand" / "export" / "model.safetensors").is_file()
