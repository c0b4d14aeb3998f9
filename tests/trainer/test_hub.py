"""Models from the hub, against a small hub on loopback: what is fetched, and answers that are no model."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import tiny
from fake_hub import COMMIT, FakeHub
from sft_trainer import hub
from sft_trainer.config import ModelSource
from sft_trainer.errors import Network, TrainerError, UserError
from sft_trainer.models import resolve

URI = "hf://acme/bot"


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    tiny.model(tmp_path / "repository")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with FakeHub(tmp_path / "repository", "acme/bot").serving() as serving:
        monkeypatch.setenv("HF_ENDPOINT", serving.url)
        yield serving


def refused(uri: str, workspace: Path) -> TrainerError:
    with pytest.raises(TrainerError) as caught:
        hub.fetch(uri, workspace)
    return caught.value


def test_a_model_is_fetched_without_pickles_and_used_like_a_folder(fake: FakeHub, tmp_path: Path) -> None:
    for name in ("pytorch_model.bin", "model.gguf", "onnx/config.json", "code.py"):
        (fake.folder / name).parent.mkdir(exist_ok=True)
        (fake.folder / name).write_text("{}")
    found = resolve(ModelSource(uri=URI), tmp_path)
    assert found.resolved == f"{URI}@{COMMIT}"
    assert sorted(path.name for path in (tmp_path / found.directory).iterdir()) == [
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert found.layers == 2


def test_a_commit_that_is_there_needs_no_network(fake: FakeHub, tmp_path: Path) -> None:
    first = hub.fetch(URI, tmp_path)
    fake.requests.clear()
    assert hub.fetch(f"{URI}@{COMMIT}", tmp_path) == first
    assert fake.requests == []
    assert hub.fetch(f"{URI}@main", tmp_path) == first
    assert len(fake.requests) == 1


def test_the_token_of_the_environment_opens_a_private_model(
    fake: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake.token = "hf_RecognisableToken"
    closed = refused(URI, tmp_path)
    assert (closed.reason, closed.exit_code) == ("HubAccessDenied", 71)
    assert "set model.secretRef to a Secret with HF_TOKEN" in closed.message
    monkeypatch.setenv("HF_TOKEN", "hf_mistaken")
    denied = refused(URI, tmp_path).message
    assert "check that the token in model.secretRef" in denied
    assert "hf_mistaken" not in denied
    monkeypatch.setenv("HF_TOKEN", fake.token)
    assert hub.fetch(URI, tmp_path)[1].endswith(COMMIT)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert [path for path in files if fake.token.encode() in path.read_bytes()] == []


@pytest.mark.parametrize(
    ("uri", "reason", "words"),
    [
        ("hf://acme/other", "ModelNotFound", "the hub knows no such model"),
        (f"{URI}@no-such-branch", "ModelNotFound", "the hub knows no revision no-such-branch"),
        ("hf://bot", "InvalidModelUri", "not of the form hf://organisation/name[@revision]"),
        ("s3://bucket/model", "InvalidModelUri", "model.uri: s3://bucket/model"),
    ],
)
def test_what_does_not_exist_is_a_users_error(
    fake: FakeHub, tmp_path: Path, uri: str, reason: str, words: str
) -> None:
    error = refused(uri, tmp_path)
    assert isinstance(error, UserError)
    assert error.reason == reason
    assert words in error.message


@pytest.mark.parametrize(
    ("status", "headers", "reason"),
    [
        (403, {"X-Error-Code": "GatedRepo"}, "HubAccessDenied"),
        (403, {}, "HubAccessDenied"),
        (500, {}, "HubUnavailable"),
        (429, {}, "HubUnavailable"),
    ],
)
def test_an_answer_that_may_change_is_tried_again_and_no_other(
    fake: FakeHub, tmp_path: Path, status: int, headers: dict[str, str], reason: str
) -> None:
    fake.status, fake.headers = status, headers
    error = refused(URI, tmp_path)
    assert error.reason == reason
    assert isinstance(error, Network if reason == "HubUnavailable" else UserError)


def test_no_way_to_the_hub_says_what_to_do_instead(
    fake: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # bound but not listening: refused at once
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{nobody.getsockname()[1]}")
        error = refused(URI, tmp_path)
    assert (error.reason, error.exit_code) == ("HubUnavailable", 77)
    assert f"{URI} could not be reached" in error.message
    assert "copy the model to the workspace and use model.path" in error.message


def test_an_interrupted_download_is_not_taken_for_a_model(fake: FakeHub, tmp_path: Path) -> None:
    hub.fetch(URI, tmp_path)
    (entry,) = (tmp_path / ".sftjob" / "cache" / "models").glob("acme*")
    partial = entry.with_name(f".{entry.name}.partial")
    entry.rename(partial)
    (partial / "model.safetensors").unlink()
    directory, _ = hub.fetch(URI, tmp_path)
    assert (directory / "model.safetensors").is_file()
    assert not partial.exists()


def test_jobs_that_start_together_download_a_model_once(fake: FakeHub, tmp_path: Path) -> None:
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda _: hub.fetch(URI, tmp_path), range(3)))
    assert len(found) == 3
    assert len(set(found)) == 1
    downloads = [request for request in fake.requests if request.startswith("GET") and "/resolve/" in request]
    assert len(downloads) == len(set(downloads)) == 5


def test_offline_by_setting_is_not_tried_again(tmp_path: Path) -> None:
    """In a process of its own: the library reads the setting once."""
    script = (
        "import sys; from pathlib import Path; from sft_trainer import hub, errors\n"
        "try: hub.fetch('hf://acme/bot', Path(sys.argv[1]))\n"
        "except errors.UserError as error: sys.exit(f'{error.reason} {error.message}')"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], env=env, capture_output=True, text=True
    )
    assert done.stderr.startswith("HubUnavailable hf://acme/bot cannot be fetched: HF_HUB_OFFLINE is set")
