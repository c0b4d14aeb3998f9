"""The report of real trainings: with LoRA and a restart, without held-out rows, of one that still runs."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

import browser
import gang
from sft_trainer.config import TrainConfig
from sft_trainer.data.cache import TokenCache
from sft_trainer.launcher.aftermath import Aftermath
from sft_trainer.launcher.supervisor import Settings
from sft_trainer.layout import JobFolder
from sft_trainer.report import page, story
from sft_trainer.report.collect import collect
from sft_trainer.samples import Sample, Samples

pytestmark = pytest.mark.processes

LORA: dict[str, Any] = {
    "training__method": "LoRA",
    "training__lora": {"rank": 4, "alpha": 8, "dropout": 0.0, "targetModules": ["AllLinear"]},
}


def environment() -> dict[str, str]:
    root = Path(__file__).resolve().parents[2]
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(root / "trainer"), str(root / "operator")])}


def pause() -> bool:
    time.sleep(0.05)
    return True


def trainer(*words: str) -> str:
    """`python -m sft_trainer WORDS`, as the launcher starts it; its log."""
    done = subprocess.run(
        [sys.executable, "-m", "sft_trainer", *words], capture_output=True, text=True, env=environment()
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


def tensorboard(folder: Path, name: str) -> list[int]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(folder / "report" / "tensorboard"))
    read.Reload()
    return [event.step for event in read.Scalars(name)]


@pytest.fixture(scope="module")
def restarted(tmp_path_factory: pytest.TempPathFactory) -> gang.Job:
    """A LoRA training that was killed after step 4 and went on from the checkpoint of step 3; then its report."""
    job = gang.Job(tmp_path_factory.mktemp("restarted") / "volume", changes=LORA | {"evaluation__samples": 2})
    with job.start() as run:
        run.ranks.until("step 4/8")
        run.ranks.send(signal.SIGKILL)
        run.end()
    ended = job.run(attempt=2)
    assert ended.codes == [0, 0], ended.output
    config, outcome = TrainConfig.model_validate(job.config(attempt=2)), ended.outcomes[0]
    assert outcome is not None
    Aftermath(JobFolder(job.folder), config, environment(), Settings(), pause).follow(outcome)
    return job


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_a_browser_shows_every_figure_and_asks_nobody(restarted: gang.Job, dark: bool) -> None:
    seen = browser.look(restarted.folder / "report" / "report.html", dark=dark)
    assert not seen.complaints
    assert not seen.requests
    assert len(seen.images) == 6
    assert all(image["width"] > 0 and image["drawn"] > 0 for image in seen.images), seen.images
    assert seen.width <= 800  # nothing sticks out
    assert "Finished" in seen.text
    assert "Answers before and after" in seen.text


def test_a_browser_shows_scripts_of_models_as_words(restarted: gang.Job, tmp_path: Path) -> None:
    evil = (
        "<script>document.title = 'taken'; console.error('ran')</script><img src=x onerror=console.error(1)>"
    )
    answer = Sample(prompt=evil, reference=evil, before=evil, after=evil)
    material = dataclasses.replace(collect(restarted.folder), samples=Samples(samples=[answer], note=evil))
    (tmp_path / "report.html").write_text(page.render(material, 0.0))
    seen = browser.look(tmp_path / "report.html")
    assert not seen.complaints  # of the script, nor of the policy that would have refused it
    assert not seen.requests
    assert seen.text.count(evil) == 5
    assert len(seen.images) == 6


def test_a_restart_leaves_one_curve_and_is_told(restarted: gang.Job) -> None:
    material = collect(restarted.folder)
    assert [point["step"] for point in material.steps] == list(range(1, 9))
    assert [point["step"] for point in material.evaluations] == [0, 4, 8]
    assert tensorboard(restarted.folder, "train/loss") == list(range(1, 9))
    assert tensorboard(restarted.folder, "eval/loss") == [0, 4, 8]
    first, second = story.attempts(material)
    assert (first.ending, second.ending) == ("Lost", "Succeeded")
    assert (second.resumed_from, second.ranks) == (3, 2)
    assert second.lost_steps >= 1
    assert story.times(material).steps > 0
    assert (story.peak_bytes(material) or 0) > 50e6


def test_the_base_was_evaluated_before_the_first_step(restarted: gang.Job) -> None:
    import torch
    import transformers

    base = transformers.AutoModelForCausalLM.from_pretrained(restarted.volume / "models" / "tiny")
    rows, losses = TokenCache(restarted.volume / "cache").eval, []
    for index in range(len(rows)):
        ids, weights = rows.row(index)
        tokens = torch.tensor(ids, dtype=torch.long)
        with torch.no_grad():
            each = torch.nn.functional.cross_entropy(
                base(tokens[None]).logits[0, :-1], tokens[1:], reduction="none"
            )
        losses += each[torch.tensor(weights[1:] > 0)].tolist()
    before, after = story.before_and_after(collect(restarted.folder))
    assert before == pytest.approx(sum(losses) / len(losses), rel=1e-5)
    assert after != before


def test_both_models_answer_held_out_prompts(restarted: gang.Job) -> None:
    made = Samples.model_validate_json((restarted.folder / "report" / "samples.json").read_bytes())
    assert made.note == ""
    assert len(made.samples) == 2
    assert all(one.prompt and one.reference and one.before is not None and one.after is not None for one in made.samples)  # fmt: skip


def test_the_card_of_the_export_can_be_read(restarted: gang.Job) -> None:
    card = ModelCard.load(restarted.folder / "export" / "README.md")
    assert card.data.library_name == "transformers"
    assert "lora" in card.data.tags


def test_a_report_of_a_running_job_without_held_out_rows(tmp_path: Path) -> None:
    volume = tmp_path / "volume"
    gang.write_cache(volume / "cache", gang.token_rows(40, seed=1), [])
    job = gang.Job(
        volume, ranks=1, changes={"training__gradientAccumulationSteps": 4, "training__maxSteps": 300}
    )
    with job.start(evaluation={}) as run:
        run.ranks.until("step 3/")
        trainer("samples", str(job.folder))
        trainer("report", str(job.folder))
        seen = browser.look(job.folder / "report" / "report.html")
        assert run.ranks.processes[0].is_alive(), "it was to be a running one"
        run.ranks.send(signal.SIGKILL)
    assert "Not finished" in seen.text
    assert "held-out loss" not in seen.text
    assert "No sample answers: spec.evaluation.samples is 0" in seen.text
    assert not seen.complaints
    assert seen.images
    assert all(image["width"] > 0 for image in seen.images)
