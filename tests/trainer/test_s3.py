"""Models and data in a store, against a real S3 server on loopback: what is copied, and answers that are no data."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

import s3_store
import tiny
from preparing import Room, chat
from s3_store import Store
from sft_trainer.errors import Network, TrainerError, UserError
from sft_trainer.remote import s3

pytestmark = pytest.mark.slow  # the store is another program, in an environment of its own
FIELD = "data.train[0].uri"


@pytest.fixture(scope="module")
def running() -> Iterator[Store]:
    with s3_store.serving() as store:
        yield store


@pytest.fixture
def store(running: Store, monkeypatch: pytest.MonkeyPatch) -> Store:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in running.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return running


@pytest.fixture
def room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Room:
    return Room(tmp_path, monkeypatch)


def lines(*rows: Any) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def source(uri: str, **more: Any) -> list[dict[str, Any]]:
    return [{"name": "0", "uri": uri, **more}]


def refused(uri: str, field: str = FIELD) -> TrainerError:
    with pytest.raises(TrainerError) as caught:
        s3.find(uri, field)
    return caught.value


def test_a_folder_a_glob_and_an_object_of_a_store_are_read_like_files(store: Store, room: Room) -> None:
    store.put("read/a.jsonl", lines(chat("hi", "first")))
    store.put("read/deep er/ö.jsonl", lines(chat("hi", "second")))
    store.put("read/notes.txt", b"no rows")
    store.put("read-not/a.jsonl", lines(chat("hi", "third")))
    for uri, rows in (
        ("s3://chats/read", 2),
        ("s3://chats/read/", 2),
        ("s3://chats/read/*.jsonl", 1),
        ("s3://chats/read/**/*.jsonl", 2),
        ("s3://chats/read*/?.jsonl", 2),
        ("s3://chats/read/[!b].jsonl", 1),
        ("s3://chats/read/a.jsonl", 1),
    ):
        done = room.run(train=source(uri))
        assert done.prepare is not None, done.message
        assert done.prepare.data.rows == rows, uri


def test_what_has_not_changed_is_copied_once_and_what_has_is_copied_again(store: Store, room: Room) -> None:
    store.put("once/a.jsonl", lines(chat("hi", "first")))
    room.run(train=source("s3://chats/once/a.jsonl"))
    (copied,) = (room.workspace / ".sftjob/cache/sources").glob("s3-chats-once*")
    at = (copied / "a.jsonl").stat().st_mtime_ns
    room.run(train=source("s3://chats/once/a.jsonl"))
    assert (copied / "a.jsonl").stat().st_mtime_ns == at
    store.put("once/a.jsonl", lines(chat("hi", "first"), chat("hi", "second")))
    again = room.run(train=source("s3://chats/once/a.jsonl"))
    assert again.prepare is not None
    assert again.prepare.data.rows == 2
    assert len(list((room.workspace / ".sftjob/cache/sources").glob("s3-chats-once*"))) == 2


def test_a_row_that_is_wrong_is_named_by_its_place_in_the_store(store: Store, room: Room) -> None:
    store.put("wrong/a.jsonl", b'{"messages": [}\n')
    failed = room.run(train=source("s3://chats/wrong"))
    assert failed.reason == "InvalidRow"
    assert "train[0] s3://chats/wrong: a.jsonl line 1" in failed.message


def test_a_model_comes_without_pickles_and_trains_like_a_folder(
    store: Store, room: Room, tmp_path: Path
) -> None:
    store.put_folder(tiny.model(tmp_path / "m"), "models/tiny")
    for name in ("pytorch_model.bin", "onnx/config.json", "code.py"):
        store.put(f"models/tiny/{name}", b"{}")
    room.write("datasets/chats.jsonl", chat("hi", "hello"))
    done = room.run(model={"uri": "s3://chats/models/tiny"})
    assert done.prepare is not None, done.message
    facts = done.prepare.model
    assert facts.resolved.startswith("s3://chats/models/tiny@")
    names = {path.name for path in (room.workspace / facts.directory).iterdir()}
    assert names == {path.name for path in (tmp_path / "m").iterdir()}


def test_every_source_has_the_keys_of_its_own_secret(
    store: Store, room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.put("mine.jsonl", lines(chat("hi", "mine")))
    store.put("theirs.jsonl", lines(chat("hi", "theirs")), bucket="closed", user="other")
    for name, value in store.environment("other").items():
        monkeypatch.setenv(f"S1_{name}", value)
    both = [*source("s3://chats/mine.jsonl"), {"name": "1", "uri": "s3://closed/theirs.jsonl"}]
    denied = room.run(train=both)
    assert denied.reason == "SourceAccessDenied"
    assert denied.message.startswith("data.train[1].uri: s3://closed/theirs.jsonl")
    done = room.run(train=[both[0], {**both[1], "secretPrefix": "S1_"}])
    assert done.prepare is not None, done.message
    assert done.prepare.data.rows == 2


def test_keys_are_sent_only_where_their_own_secret_says(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model's Secret names a store, and the source's has keys of AWS."""
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", store.url)
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", "/token")
    monkeypatch.setenv("S1_AWS_ACCESS_KEY_ID", "AKIA")
    monkeypatch.setenv("S1_AWS_REGION", "eu-west-3")
    theirs = s3.store(s3.Access("chats", "S1_"))
    assert theirs.config["endpoint_url_s3"] == "https://s3.eu-west-3.amazonaws.com"
    assert str(theirs.client_options["allow_http"]).lower() == "false"
    assert s3.store(s3.Access("chats", "")).config["endpoint_url_s3"] == store.url
    assert s3.Access("chats", "S2_").is_anonymous


@pytest.mark.parametrize(
    ("uri", "changed", "reason", "words"),
    [
        ("s3://chats/x", {"AWS_ACCESS_KEY_ID": "AKIANOBODY"}, "SourceAccessDenied", "InvalidAccessKeyId"),
        ("s3://chats/x", {"AWS_SECRET_ACCESS_KEY": "no"}, "SourceAccessDenied", "in the Secret of data.train[0].secretRef"),
        ("s3://closed/x", {}, "SourceAccessDenied", "allow s3:ListBucket and s3:GetObject"),
        ("s3://hostile/up", {}, "UnsafeName", "rename that object"),
        ("s3://chats", {}, "InvalidUri", "s3://<bucket>/<key, folder or glob>"),
        ("gs://chats/x", {}, "InvalidUri", "s3://"),
    ],
)  # fmt: skip
def test_what_a_store_refuses_is_said_with_the_field_and_the_fix(
    store: Store, monkeypatch: pytest.MonkeyPatch, uri: str, changed: dict[str, str], reason: str, words: str
) -> None:
    for name, value in changed.items():
        monkeypatch.setenv(name, value)
    error = refused(uri)
    assert isinstance(error, UserError)
    assert error.reason == reason
    assert error.message.startswith(f"{FIELD}: {uri}")
    assert words in error.message
    assert store.keys["reader"]["AWS_SECRET_ACCESS_KEY"] not in error.message


def test_nothing_there_is_said_and_not_trained_without(store: Store, room: Room) -> None:
    failed = room.run(train=source("s3://chats/no/such/*.jsonl"))
    assert failed.reason == "SourceNotFound"
    assert failed.message.startswith(
        "data.train[0].uri: s3://chats/no/such/*.jsonl is nothing that ends with .jsonl"
    )
    none = room.run(model={"uri": "s3://chats/no/model"}, train=[{"name": "0", "inline": "{}"}])
    assert (none.reason, none.exit_code) == ("SourceNotFound", 71)


@pytest.mark.parametrize(
    ("status", "body", "reason", "words"),
    [
        (403, "AccessDenied", "SourceAccessDenied", "set data.train[0].secretRef to a Secret with AWS_ACCESS_KEY_ID"),
        (301, "PermanentRedirect", "SourceRefused", "set AWS_REGION to the bucket's"),
        (400, "AuthorizationHeaderMalformed</Code><Message>the region 'us-east-1' is wrong; expecting 'eu-west-3'",
         "SourceRefused", "set AWS_REGION to eu-west-3"),
        (404, "NoSuchBucket", "SourceNotFound", "there is no bucket chats at http"),
        (403, "ExpiredToken", "SourceAccessDenied", "correct AWS_ACCESS_KEY_ID"),
    ],
)  # fmt: skip
def test_answers_of_other_stores_are_understood(
    monkeypatch: pytest.MonkeyPatch, status: int, body: str, reason: str, words: str
) -> None:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            content = f"<Error><Code>{body}</Code></Error>".encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *args: object) -> None:
            return

    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "" if body == "AccessDenied" else "AKIA")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        try:
            error = refused("s3://chats/a.jsonl")
        finally:
            server.shutdown()
            thread.join()
    assert error.reason == reason
    assert words in error.message


def test_a_store_that_does_not_answer_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    error = refused("s3://chats/a.jsonl")
    assert isinstance(error, Network)
    assert "http://127.0.0.1:9 could not be reached" in error.message


def test_a_killed_copy_is_continued_by_the_next(store: Store, tmp_path: Path) -> None:
    """kill -9 in the middle: the lock is free at once, and what has arrived is not read again."""
    content = os.urandom(3 << 20)
    store.put("large.jsonl", content)
    script = (
        "import sys, time; from pathlib import Path\n"
        "from sft_trainer.remote import copy, s3\n"
        "found = s3.find('s3://chats/large.jsonl', 'f.uri')\n"
        "reads = []\n"
        "def read(one, start, end):\n"
        "    print(start, flush=True)\n"
        "    if start >= int(sys.argv[2]): time.sleep(600)\n"
        "    return found.read(one, start, end)\n"
        "import dataclasses\n"
        "print(copy.copy(dataclasses.replace(found, read=read), Path(sys.argv[1]), piece=1 << 19))\n"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}

    def start(stop_at: int) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", script, str(tmp_path), str(stop_at)]
        return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True)

    first = start(2 << 20)
    assert first.stdout is not None
    for line in first.stdout:
        if int(line) == 2 << 20:
            break
    os.kill(first.pid, signal.SIGKILL)
    first.communicate()
    begun = time.monotonic()
    output, _ = start(1 << 62).communicate(timeout=60)
    *reads, entry = output.split()
    assert time.monotonic() - begun < 60
    assert [int(each) for each in reads] == [3 << 19, 2 << 20, 5 << 19]
    assert (Path(entry) / "large.jsonl").read_bytes() == content
