"""The real model learns who it is: identity.json, at most 60 steps, asked in words that are not in the data."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import assets
import demo

pytestmark = [pytest.mark.processes, pytest.mark.model, pytest.mark.timeout(1500)]

NAME, AUTHOR = "Juniper", "the Larkfield workshop"
PARAPHRASED = (
    "Hey, what should I call you?",
    "Could you tell me your name, please?",
    "Can you tell me what your name is, please?",
    "Please introduce yourself in one sentence.",
    "Hello there, what may I call you?",
)
STEPS = 60


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The workspace after the job."""
    folder = tmp_path_factory.mktemp("identity")
    workspace = folder / "workspace"
    for name in ("models", "datasets"):
        (workspace / name).mkdir(parents=True)
    shutil.copy(assets.model_gguf(), workspace / "models" / "smol.gguf")
    text = assets.identity_json().read_text().replace("{{name}}", NAME).replace("{{author}}", AUTHOR)
    (workspace / "datasets" / "identity.json").write_text(text)
    spec = {
        "model": {"path": "models/smol.gguf"},
        "data": {"train": [{"path": "datasets/identity.json"}], "maxLength": 256},
        "training": {
            "maxSteps": STEPS,
            "globalBatchSize": 2,
            "learningRate": 2e-4,
            "scheduler": {"type": "Cosine", "warmupSteps": 4},
            "precision": "fp32",
        },
        "workers": {"nodes": 2, "gpusPerNode": 0},
        "workspace": {"claimName": "workspace"},
        "checkpoint": {"periodSteps": 1000},
    }
    manifest = {
        "apiVersion": "sftjob.dev/v1alpha1",
        "kind": "SFTJob",
        "metadata": {"name": "identity"},
        "spec": spec,
    }
    (folder / "job.yaml").write_text(json.dumps(manifest))
    words = ["run", str(folder / "job.yaml"), "--workspace", str(workspace), "--state", str(folder / "state")]
    done = subprocess.run(
        [sys.executable, "-m", "sftjob_operator.cli.app", *words], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return workspace


def answers(workspace: Path, *questions: str) -> list[str]:
    return demo.ask(workspace / "jobs/identity/export", list(questions))


def test_no_question_is_in_the_data(trained: Path):
    data = (trained / "datasets" / "identity.json").read_text()
    assert not [question for question in PARAPHRASED if question in data]


def test_it_names_its_new_identity_in_four_of_five_questions(trained: Path):
    said = answers(trained, *PARAPHRASED)
    assert sum(NAME in answer for answer in said) >= 4, said


def test_it_still_knows_the_capital_of_france(trained: Path):
    (answer,) = answers(trained, "What is the capital of France?")
    assert "Paris" in answer
