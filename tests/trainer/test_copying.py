"""Copies of what lies in a store: continued, compared, bounded, and confined to their folder."""

from __future__ import annotations

import hashlib
import os
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from sft_trainer.errors import Network, TrainerError, UserError, VolumeFull
from sft_trainer.remote import copy, https, listing
from sft_trainer.remote.listing import Listing, Remote

CONTENT = bytes(range(256)) * 40
MD5 = hashlib.md5(CONTENT).hexdigest()
PIECE = 1024


class Source:
    """A listing over bytes in memory which remembers what was read of it."""

    def __init__(
        self, content: bytes = CONTENT, etag: str = MD5, names: tuple[str, ...] = ("a.jsonl",)
    ) -> None:
        self.content, self.etag, self.names = content, etag, names
        self.reads: list[int] = []
        self.fail_at: int | None = None

    def listing(self) -> Listing:
        objects = tuple(Remote(name, name, len(self.content), self.etag) for name in self.names)
        return Listing("s3://chats/a", "data.train[0].uri", objects, self._read)

    def _read(self, one: Remote, start: int, end: int) -> bytes:
        if self.fail_at is not None and start >= self.fail_at:
            raise Network("gone")
        self.reads.append(start)
        return self.content[start:end]


def test_a_copy_goes_on_where_it_was_interrupted_but_for_the_last_pieces(tmp_path: Path) -> None:
    source = Source()
    source.fail_at = 5 * PIECE
    with pytest.raises(Network):
        copy.copy(source.listing(), tmp_path, piece=PIECE)
    assert [path.name for path in tmp_path.iterdir() if path.name[0] != "."] == []
    source.fail_at, source.reads = None, []
    entry = copy.copy(source.listing(), tmp_path, piece=PIECE)
    assert source.reads == [start * PIECE for start in range(4, 10)]
    assert (entry / "a.jsonl").read_bytes() == CONTENT
    source.reads = []
    assert copy.copy(source.listing(), tmp_path, piece=PIECE) == entry
    assert source.reads == []


def test_what_a_crash_has_damaged_is_read_again(tmp_path: Path) -> None:
    source = Source()
    source.fail_at = 5 * PIECE
    with pytest.raises(Network):
        copy.copy(source.listing(), tmp_path, piece=PIECE)
    (left,) = tmp_path.glob(".*.partial/a.jsonl")
    left.write_bytes(bytes(left.stat().st_size))  # as a file system that lost its last writes
    source.fail_at = None
    entry = copy.copy(source.listing(), tmp_path, piece=PIECE)
    assert (entry / "a.jsonl").read_bytes() == CONTENT


def test_a_tag_that_is_no_hash_of_the_content_is_no_error(tmp_path: Path) -> None:
    """Stores that encrypt with keys of their own have such."""
    entry = copy.copy(Source(etag="0" * 32).listing(), tmp_path, piece=PIECE)
    assert (entry / "a.jsonl").read_bytes() == CONTENT


def test_an_answer_that_is_too_short_is_not_taken(tmp_path: Path) -> None:
    source = Source()
    whole = source.listing()
    short = Listing(whole.uri, whole.field, whole.objects, lambda one, start, end: b"x")
    with pytest.raises(Network, match="came incompletely"):
        copy.copy(short, tmp_path, piece=PIECE)


def test_what_cannot_fit_is_refused_before_it_is_read(tmp_path: Path) -> None:
    huge = (Remote("a.jsonl", "a.jsonl", 1 << 60, MD5),)
    with pytest.raises(
        VolumeFull, match=r"has 1073741824.0 GiB and the workspace volume has .* free: free space"
    ):
        copy.copy(Listing("s3://chats/a", "data.train[0].uri", huge, Source().listing().read), tmp_path)


def test_a_link_in_the_place_of_a_copy_is_not_followed(tmp_path: Path) -> None:
    source = Source()
    source.fail_at = 0
    with pytest.raises(Network):
        copy.copy(source.listing(), tmp_path / "cache", piece=PIECE)
    (left,) = (tmp_path / "cache").glob(".*.partial/a.jsonl")
    left.unlink()
    left.symlink_to(tmp_path / "other")
    source.fail_at = None
    with pytest.raises((OSError, ValueError)):
        copy.copy(source.listing(), tmp_path / "cache", piece=PIECE)
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    "name", ["../up", "a/../b", "/etc/passwd", "a//b", "a\0b", "a\\b", ".", "x" * 300, "a\nb"]
)
def test_names_that_are_unsafe_as_files_are_refused(name: str) -> None:
    with pytest.raises(UserError) as caught:
        listing.checked("f.uri", "s3://b/k", [Remote(name, name, 1, "")])
    assert caught.value.reason == "UnsafeName"


def test_a_file_and_a_folder_of_one_name_are_refused() -> None:
    both = [Remote("a", "a", 1, ""), Remote("a/b", "a/b", 1, "")]
    with pytest.raises(UserError, match="a file and a folder of one name"):
        listing.checked("f.uri", "s3://b/k", both)


def test_a_listing_without_end_is_bounded() -> None:
    def endless() -> Iterator[Remote]:
        number = 0
        while True:
            number += 1
            yield Remote(f"{number}.jsonl", f"{number}.jsonl", 1, "")

    for bound in (listing.checked, lambda *words: list(listing.bounded(*words))):
        with pytest.raises(UserError, match="f.uri: s3://b/k") as caught:
            bound("f.uri", "s3://b/k", endless())
        assert caught.value.reason == "SourceTooLarge"


# ------------------------------------------------------------------------------ https


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Key and certificate of 127.0.0.1 in one file."""
    path = tmp_path_factory.mktemp("tls") / "server.pem"
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-days",
        "1",
        "-subj",
        "/CN=127.0.0.1",
    ]
    more = ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(path), "-out", f"{path}.crt"]
    subprocess.run([*command, *more], check=True, capture_output=True)
    path.write_text(path.read_text() + Path(f"{path}.crt").read_text())
    return path


@contextmanager
def web(
    certificate: Path, answers: dict[str, tuple[int, dict[str, str]]], content: bytes = CONTENT
) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, headers = answers.get(self.path, (206, {"ETag": '"1"'}))
            start, end = self.headers["Range"].removeprefix("bytes=").split("-")
            body = content[int(start) : int(end) + 1] if status == 206 else b""
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            if status == 206:
                self.send_header(
                    "Content-Range", f"bytes {start}-{int(start) + len(body) - 1}/{len(content)}"
                )
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            return

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        server.handle_error = lambda *words: None  # type: ignore[method-assign]
        plain = server.get_request

        def secured() -> tuple[ssl.SSLSocket, object]:
            accepted, address = plain()
            try:
                return context.wrap_socket(accepted, server_side=True), address
            except OSError:
                accepted.close()
                raise

        server.get_request = secured  # type: ignore[method-assign,assignment]
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"https://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def trusted(certificate: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SSL_CERT_FILE", f"{certificate}.crt")
    for name in ("HTTPS_PROXY", "https_proxy"):
        monkeypatch.delenv(name, raising=False)
    return certificate


def test_a_file_of_a_web_server_is_copied_once(trusted: Path, tmp_path: Path) -> None:
    answers = {"/moved.jsonl": (302, {"Location": "/data%20set.jsonl?x=1"})}
    with web(trusted, answers) as url:
        first = copy.copy(https.find(f"{url}/data%20set.jsonl?x=1", "f.uri"), tmp_path, piece=PIECE)
        assert (first / "data set.jsonl").read_bytes() == CONTENT
        moved = copy.copy(https.find(f"{url}/moved.jsonl", "f.uri"), tmp_path, piece=PIECE)
        assert (moved / "moved.jsonl").read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("status", "headers", "reason", "words"),
    [
        (302, {"Location": "http://127.0.0.1:1/x"}, "SourceRefused", "redirects to http://"),
        (302, {"Location": "file:///etc/passwd"}, "SourceRefused", "the server answered 302"),
        (302, {"Location": "/x.jsonl"}, "SourceRefused", "the server answered 302"),
        (200, {}, "SourceRefused", "does not serve parts of a file"),
        (206, {}, "SourceRefused", "neither ETag nor Last-Modified"),
        (401, {}, "SourceAccessDenied", "only public files are read"),
        (404, {}, "SourceNotFound", "is not there"),
        (503, {}, "SourceUnavailable", "answered 503"),
    ],
)
def test_what_a_web_server_refuses_is_said(
    trusted: Path, status: int, headers: dict[str, str], reason: str, words: str
) -> None:
    with web(trusted, {"/x.jsonl": (status, headers)}) as url, pytest.raises(TrainerError) as caught:
        https.find(f"{url}/x.jsonl", "f.uri")
    assert caught.value.reason == reason
    assert words in caught.value.message
    assert isinstance(caught.value, Network if status == 503 else UserError)


def test_a_certificate_that_nobody_vouches_for_is_not_accepted(
    certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    with web(certificate, {}) as url, pytest.raises(Network, match="CERTIFICATE_VERIFY_FAILED"):
        https.find(f"{url}/x.jsonl", "f.uri")
    assert "SSL_CERT_FILE" not in os.environ
