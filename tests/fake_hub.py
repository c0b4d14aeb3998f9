"""A Hugging Face hub on loopback with one model repository: the few answers that a download asks for."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

COMMIT = "0e9e39f249a16976918f6564b8830bc894c89659"


class FakeHub:
    """Serves `folder` as `name`. `status` makes every answer that error; `token` is then needed to read."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder = folder
        self.name = name
        self.status: int | None = None
        self.headers: dict[str, str] = {}
        self.token: str | None = None
        self.requests: list[str] = []
        self.url = ""

    @contextmanager
    def serving(self, address: str = "127.0.0.1") -> Iterator[FakeHub]:
        """Answer on a free port of this address until the block ends."""
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                hub.answer(self)

            def do_HEAD(self) -> None:
                hub.answer(self)

            def log_message(self, *args: object) -> None:
                return

        with ThreadingHTTPServer((address, 0), Handler) as server:
            server.daemon_threads = True
            thread = threading.Thread(target=server.serve_forever, args=(0.01,))
            thread.start()
            self.url = f"http://{address}:{server.server_port}"
            try:
                yield self
            finally:
                server.shutdown()
                thread.join()

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        path = unquote(urlsplit(request.path).path)
        self.requests.append(f"{request.command} {path}")
        if self.status is not None:
            return self._send(request, self.status, b"{}", self.headers)
        if self.token and request.headers.get("authorization") != f"Bearer {self.token}":
            return self._send(request, 401, b"{}", {"X-Error-Code": "RepoNotFound"})
        if path.startswith(f"/api/models/{self.name}"):
            return self._api(request, path.removeprefix(f"/api/models/{self.name}"))
        prefix = f"/{self.name}/resolve/{COMMIT}/"
        if path.startswith(prefix) and (self.folder / path.removeprefix(prefix)).is_file():
            return self._file(request, self.folder / path.removeprefix(prefix))
        return self._send(request, 404, b"{}", {"X-Error-Code": "RepoNotFound"})

    def _api(self, request: BaseHTTPRequestHandler, rest: str) -> None:
        files = sorted(path for path in self.folder.rglob("*") if path.is_file())
        names = [path.relative_to(self.folder).as_posix() for path in files]
        if rest.startswith("/tree/"):
            tree = [
                {"type": "file", "path": name, "size": path.stat().st_size, "oid": self._etag(path)}
                for name, path in zip(names, files, strict=True)
            ]
            return self._send(request, 200, json.dumps(tree).encode())
        if rest in ("", "/revision/main", f"/revision/{COMMIT}"):
            info = {"id": self.name, "sha": COMMIT, "siblings": [{"rfilename": name} for name in names]}
            return self._send(request, 200, json.dumps(info).encode())
        return self._send(request, 404, b"{}", {"X-Error-Code": "RevisionNotFound"})

    def _file(self, request: BaseHTTPRequestHandler, path: Path) -> None:
        headers = {"ETag": f'"{self._etag(path)}"', "X-Repo-Commit": COMMIT}
        self._send(request, 200, path.read_bytes(), headers)

    def _etag(self, path: Path) -> str:
        return hashlib.sha1(path.read_bytes()).hexdigest()

    def _send(
        self, request: BaseHTTPRequestHandler, status: int, body: bytes, headers: dict[str, str] | None = None
    ) -> None:
        request.send_response(status)
        for key, value in (headers or {}).items():
            request.send_header(key, value)
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        if request.command == "GET":
            request.wfile.write(body)
