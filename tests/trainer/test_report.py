"""The report is made of whatever lies in a job's folder, and says nothing that a name or an answer could abuse."""

from __future__ import annotations

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

import gang
from sft_trainer.config import (
    DataConfig,
    DataFacts,
    DataSource,
    EvalSplit,
    JobIdentity,
    ModelFacts,
    ModelSource,
    Outcome,
    PrepareConfig,
    Prepared,
    PrepareResult,
    TrainResult,
)
from sft_trainer.curves import Curves
from sft_trainer.events import Chronicle, Event, Events, read
from sft_trainer.layout import JobFolder
from sft_trainer.report import command, page, story
from sft_trainer.report.collect import Material, collect
from sft_trainer.samples import Sample, Samples

EVIL = "<script>alert('x')</script><img src=x onerror=alert(1)>"


def prepared(name: str = "tickets") -> Prepared:
    source = DataSource(name=name, path="datasets/tickets.jsonl", weight=2)
    config = PrepareConfig(
        job=JobIdentity(namespace="default", name="job", uid="uid-1"),
        model=ModelSource(path="models/tiny"),
        data=DataConfig(
            train=[source],
            eval=EvalSplit(split_percent=5),
            max_length=128,
            packing="BestFit",
            loss_on="Assistant",
            on_too_long="Truncate",
            on_invalid_row="Fail",
        ),
        seed=7,
    )
    model = ModelFacts(
        directory="models/tiny", resolved="models/tiny", architecture="LlamaForCausalLM", parameters=8_030_261_248,
        embedding_parameters=1, lora_parameters_per_rank=1, hidden_size=64, intermediate_size=128, layers=2, heads=2,
        vocabulary_size=258, tied_embeddings=True,
    )  # fmt: skip
    data = DataFacts(
        cache="cache", hash="c0ffee", rows=40, eval_rows=6, tokens=1300, supervised_tokens=650, truncated_rows=3,
        dropped_rows=0, skipped_rows=1, longest_row=300, packs=12, fill_percent=97,
    )  # fmt: skip
    return Prepared(config=config, result=PrepareResult(model=model, data=data))


class Left:
    """A job's folder as a training leaves it, written by the product's own writers."""

    def __init__(self, root: Path, **changes: Any) -> None:
        self.job = gang.Job(root / "volume", changes=changes)
        self.folder = JobFolder(self.job.folder)
        self.folder.report.mkdir(parents=True)
        self.folder.prepared.write_text(prepared().to_json())

    def run(self, attempt: int, resumed_from: int | None, lost: dict[int, float] | None = None) -> None:
        self.events = Events(self.folder.events, "uid-1", attempt)
        about = {
            "config": self.job.config(attempt=attempt, planned={"memoryBytes": 4 * 2**30, "decided": ["zeroStage"]}),
            "precision": "bf16", "world_size": 2, "device": "NVIDIA H200", "versions": {"torch": "2.13"},
        }  # fmt: skip
        chronicle = Chronicle(self.events, about)
        chronicle.started(8, resumed_from, lost or {})
        chronicle.first_step({"imports": 3.0, "first step": 2.0})

    def steps(self, first: int, last: int) -> None:
        curves = Curves(self.folder.curves)
        if first == 1:
            curves.append(step=0, eval_loss=4.0, perplexity=54.6, seconds=1.0)
        for step in range(first, last + 1):
            curves.append(
                step=step, epoch=step / 4, loss=4.0 - step / 4, lr=1e-3, grad_norm=1.0, tokens=600,
                supervised_tokens=300, seconds=2.0,
            )  # fmt: skip

    def end(self, **outcome: Any) -> None:
        said = Outcome(**outcome).model_dump(mode="json", exclude_none=True)
        self.events.append("ended", outcome=said)

    def finished(self) -> None:
        self.run(1, None)
        self.steps(1, 8)
        Curves(self.folder.curves).append(step=8, eval_loss=2.0, perplexity=7.39, seconds=1.0)
        self.events.append("trained", peaks=[3 * 2**30, 2 * 2**30])
        train = TrainResult(
            steps=8,
            planned_steps=8,
            exported_step=8,
            eval_loss=2.0,
            export_directory="jobs/job/export",
            export_bytes=5,
        )
        self.end(outcome="Succeeded", reason="Succeeded", last_step=8, train=train)
        self.folder.export.mkdir()

    def page(self) -> str:
        assert command.main([str(self.folder.root)]) == 0
        return self.folder.page.read_text()


class Elements(HTMLParser):
    """Tags and attributes of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words.append(data.strip())

    def row(self, label: str) -> str:
        """The value beside a label."""
        words = [word for word in self.words if word]
        return words[words.index(label) + 1]


@pytest.fixture(autouse=True)
def _without_figures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes a second: only tests that ask for `figures` do it."""
    if "figures" not in request.fixturenames:
        monkeypatch.setattr(page, "figures", lambda *_: iter(()))


@pytest.fixture
def figures() -> None:
    """The page has its plots."""


@pytest.fixture
def left(tmp_path: Path) -> Left:
    return Left(tmp_path)


def test_a_finished_training_is_told_in_figures(left: Left, figures: None) -> None:
    left.finished()
    html = left.page()
    seen = Elements(html)
    assert "Finished" in seen.words
    assert seen.row("loss before") == "4.0000"
    assert seen.row("loss after") == "2.0000"
    assert seen.row("perplexity after") == "7.389"
    assert seen.row("supervised") == "50 %"
    assert seen.row("memory per rank, planned") == "4.0 GiB"
    assert seen.row("memory per rank, measured peak") == "3.0 GiB"
    assert "75 % of the plan" in seen.words
    assert seen.row("tokens per second") == "300"
    assert seen.row("hash of the data") == "c0ffee"
    assert seen.row("torch") == "2.13"
    pictures = [attributes for tag, attributes in seen.found if tag == "img"]
    assert len(pictures) == 6
    assert all(one["alt"] and (one["src"] or "").startswith("data:image/svg+xml") for one in pictures)


def test_nothing_in_the_page_is_from_elsewhere_and_nothing_can_run(left: Left, figures: None) -> None:
    left.finished()
    seen = Elements(left.page())
    for tag, attributes in seen.found:
        assert tag not in ("script", "iframe", "object", "embed", "form", "base")
        assert not any(name.startswith("on") for name in attributes)
        for name in ("src", "srcset", "href"):
            assert (attributes.get(name) or "data:").startswith("data:")
    policy = next(a for tag, a in seen.found if tag == "meta" and a.get("http-equiv"))
    assert policy["content"] == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def test_words_of_users_and_models_stay_words(tmp_path: Path) -> None:
    left = Left(
        tmp_path,
        job={"namespace": "default", "name": EVIL, "uid": "uid-1"},
        model={"directory": "models/tiny", "resolved": EVIL},
    )
    left.folder.prepared.write_text(prepared(name=EVIL).to_json())
    one = Sample(prompt=EVIL, reference=EVIL, before=EVIL, after=EVIL)
    left.folder.samples.write_text(Samples(samples=[one], note=EVIL).to_json())
    left.run(1, None)
    left.end(outcome="Failed", reason=EVIL, message=EVIL, exit_code=70)
    left.folder.export.mkdir()
    html = left.page()
    assert html.count("&lt;script&gt;") >= 10
    for text in (html, (left.folder.export / "README.md").read_text()):
        assert "<script" not in text
        assert "<img src=x" not in text
        assert "onerror" not in [name for _, attributes in Elements(text).found for name in attributes]


@pytest.mark.parametrize("word", ["{{ 7 * 7 }}", "{% raw %}", "a | b\n| c", "--- \nlicense: mit"])
def test_words_of_users_are_no_template_and_break_no_table(tmp_path: Path, word: str) -> None:
    left = Left(tmp_path)
    left.folder.prepared.write_text(prepared(name=word).to_json())
    left.finished()
    left.page()
    text = (left.folder.export / "README.md").read_text()
    card = ModelCard(text)
    assert card.data.license is None
    row = next(line for line in text.splitlines() if "tickets.jsonl" in line)
    assert len(re.findall(r"(?<!\\)\|", row)) == 6
    assert "49" not in row


def test_steps_done_again_are_not_goodput(left: Left) -> None:
    left.run(1, None)
    left.steps(1, 5)
    left.end(
        outcome="Failed", reason="HostOutOfMemory", message="rank 1 was killed", exit_code=137, last_step=5
    )
    lost = Curves(left.folder.curves).cut(3)
    assert lost == {4: 2.0, 5: 2.0}
    left.run(2, 3, lost)
    left.steps(4, 8)
    material = collect(left.folder.root)
    assert [point["step"] for point in material.steps] == list(range(1, 9))
    found = story.times(material)
    assert (found.steps, found.repeated, found.evaluation, found.starting) == (16.0, 4.0, 1.0, 6.0)
    first, second = story.attempts(material)
    assert (first.ending, first.message, first.last_step) == ("HostOutOfMemory", "rank 1 was killed", 5)
    assert (second.ending, second.resumed_from, second.lost_steps) == ("Running", 3, 2)
    assert "Not finished" in left.page()


def test_a_suspension_over_night_is_no_bad_goodput(tmp_path: Path) -> None:
    def event(kind: str, time: float, attempt: int, **facts: Any) -> Event:
        return Event(kind=kind, time=time, attempt=attempt, uid="uid-1", facts=facts)

    starting = {"phases": {"imports": 20.0}}
    events = [
        event("begun", 15.0, 1), event("first_step", 20.0, 1, **starting), event("ended", 120.0, 1),
        event("begun", 40_115.0, 2), event("first_step", 40_120.0, 2, **starting), event("ended", 40_220.0, 2),
    ]  # fmt: skip
    steps = [{"step": number, "seconds": 1.0} for number in range(200)]
    found = story.times(Material("bot", JobFolder(tmp_path), events, steps=steps, heard=40_220.0))
    assert (found.steps, found.starting, found.waiting, found.rest) == (200.0, 40.0, 39_980.0, 0.0)
    assert found.goodput == pytest.approx(200 / 240)


def test_a_run_that_died_without_a_word_is_an_attempt_too(left: Left) -> None:
    left.run(1, None)
    left.run(2, None)
    left.end(outcome="Failed", reason="UserError", message="row 7", exit_code=71)
    Events(left.folder.events, "uid-1", 3).append(
        "ended", outcome={"outcome": "Failed", "reason": "PeerLost"}
    )
    assert [(one.number, one.ending) for one in story.attempts(collect(left.folder.root))] == [
        (1, "Lost"), (2, "UserError"), (3, "PeerLost"),
    ]  # fmt: skip
    assert "Failed: PeerLost" in left.page()


def test_another_job_that_only_tried_the_folder_is_not_in_the_story(left: Left) -> None:
    left.finished()
    Events(left.folder.events, "uid-2", 1).append(
        "ended", outcome={"outcome": "Failed", "reason": "UserError"}
    )
    assert "Finished" in Elements(left.page()).words


@pytest.mark.parametrize("gone", ["events.jsonl", "metrics.jsonl", "../prepared.json", "../../../cache"])
@pytest.mark.parametrize("how", ["missing", "damaged"])
def test_there_is_a_report_whatever_is_missing(left: Left, gone: str, how: str) -> None:
    left.finished()
    path = left.folder.report / gone
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.write_bytes(b"\xff{half a li" if how == "damaged" else b"")
    if path.is_dir() or how == "damaged":
        path.exists() or path.mkdir()
    assert "Training report" in left.page()


def test_there_is_a_report_of_a_folder_with_nothing_in_it(tmp_path: Path) -> None:
    folder = tmp_path / "jobs" / "empty"
    folder.mkdir(parents=True)
    assert command.main([str(folder)]) == 0
    assert "Not begun" in (folder / "report" / "report.html").read_text()
    assert command.main([str(tmp_path / "none")]) == 2


def test_loss_that_is_no_number_is_left_out_of_the_curves(left: Left, figures: None) -> None:
    left.run(1, None)
    left.steps(1, 3)
    Curves(left.folder.curves).append(
        step=4, loss=float("nan"), lr=1e-3, grad_norm=float("inf"), tokens=1, seconds=1.0
    )
    left.end(outcome="Failed", reason="Diverged", message="loss nan", exit_code=71)
    assert "Failed: Diverged" in left.page()


@pytest.mark.slow
def test_a_long_training_makes_no_long_page(left: Left, figures: None) -> None:
    left.run(1, None)
    lines = (
        json.dumps(
            {
                "step": step,
                "loss": 4 - step / 10000,
                "lr": 1e-4,
                "grad_norm": 1 + step % 7,
                "tokens": 600,
                "seconds": 2.0,
            }
        )
        for step in range(1, 30_001)
    )
    left.folder.curves.write_text("\n".join(lines))
    assert len(left.page()) < 2_000_000


def test_the_model_card_says_what_hubs_ask_for_and_no_row_of_the_data(tmp_path: Path) -> None:
    commit = "0123456789abcdef" * 2 + "01234567"
    left = Left(tmp_path, model={"directory": "models/tiny", "resolved": f"hf://acme/tiny@{commit}"})
    (left.job.volume / "models" / "tiny" / "README.md").write_text("---\nlicense: apache-2.0\n---\n# Tiny\n")
    left.folder.samples.write_text(Samples(samples=[Sample(prompt="my address is", reference="x")]).to_json())
    left.finished()
    left.page()
    card = ModelCard.load(left.folder.export / "README.md")
    assert (card.data.base_model, card.data.license, card.data.library_name) == (
        "acme/tiny",
        "apache-2.0",
        "transformers",
    )
    assert card.data.pipeline_tag == "text-generation"
    assert "sft" in card.data.tags
    assert "my address" not in card.content
    assert "c0ffee" not in card.content or "token cache" in card.content


@pytest.mark.slow
def test_the_same_report_twice_is_the_same_page(left: Left, figures: None) -> None:
    left.finished()
    material = collect(left.folder.root)
    assert page.render(material, 1.0) == page.render(material, 1.0)


def test_half_a_line_of_the_story_is_left_out(left: Left) -> None:
    left.run(1, None)
    with open(left.folder.events, "a") as file:
        file.write('{"kind": "ended", "uid": "uid-1"\n[1]\nnull\n{"kind": "begun"}\n')
    assert [event.kind for event in read(left.folder.events)] == ["begun", "first_step"]
