"""GET /metrics, /healthz and /progress of a pod, answered from files.

The ranks write files and this thread reads them, so that a rank which is busy, stopped or dead cannot block a
scrape. It serves people and monitors only: that it cannot start is a warning.
"""

from __future__ import annotations

import logging
import socket
import socketserver
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from sft_trainer.run_folder import RunFolder

logger = logging.getLogger(__name__)

_IDLE_SECONDS = 10.0  # a connection without a request is closed
_HEALTHY_SECONDS = 60.0  # the supervisor ticks every second; a slow name server may hold it for half a minute
_NO_PROGRESS = b'{"error": "no progress yet: rank 0 has not made its first report on this pod"}'

Answer = tuple[int, str, bytes]


class Heartbeat:
    """When the supervisor last went round its loop."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._last = clock()

    def beat(self) -> None:
        """The supervisor is alive."""
        self._last = self._clock()

    @property
    def age(self) -> float:
        """Seconds since the last beat."""
        return self._clock() - self._last


class Pages:
    """What each path answers."""

    def __init__(self, run: RunFolder, registry: CollectorRegistry, heartbeat: Heartbeat) -> None:
        self._run = run
        self._registry = registry
        self._heartbeat = heartbeat

    def answer(self, path: str, accept: str) -> Answer:
        """Status, content type and body for a GET of `path`."""
        match path.partition("?")[0]:
            case "/metrics":
                encode, content_type = choose_encoder(accept)
                return 200, content_type, encode(self._registry)
            case "/healthz":
                return self._health()
            case "/progress":
                return self._progress()
            case _:
                return 404, "text/plain; charset=utf-8", b"try /metrics, /healthz or /progress\n"

    def _health(self) -> Answer:
        age = self._heartbeat.age
        status = 200 if age < _HEALTHY_SECONDS else 503
        return status, "text/plain; charset=utf-8", f"supervisor loop {age:.1f} s ago\n".encode()

    def _progress(self) -> Answer:
        try:
            return 200, "application/json", self._run.progress.read_bytes()
        except OSError:
            return 404, "application/json", _NO_PROGRESS


class _Server(socketserver.ThreadingTCPServer):
    """Not HTTPServer: that one asks DNS for its own name before it listens."""

    allow_reuse_address = True
    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def __init__(self, address: str, port: int, pages: Pages) -> None:
        self.address_family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self.pages = pages
        super().__init__((address, port), _Handler)

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that went away is not an event."""
        logger.debug("request of %s failed", client_address, exc_info=True)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = _IDLE_SECONDS
    server_version = "sft-trainer"
    sys_version = ""
    server: _Server

    def do_GET(self) -> None:
        """Answer from the pages; a page that cannot be made is a 500 in plain words."""
        try:
            status, content_type, body = self.server.pages.answer(self.path, self.headers.get("Accept", ""))
        except Exception as error:
            logger.warning("GET %s: %r", self.path, error)
            status, content_type, body = 500, "text/plain; charset=utf-8", f"{error!r}\n".encode()
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_HEAD = do_GET

    def log_message(self, format: str, *args: object) -> None:
        """Scrapes are not worth a line each."""
        logger.debug("%s " + format, self.address_string(), *args)


def serve(address: str, port: int, pages: Pages) -> None:
    """Serve in a daemon thread until the process ends; not at all, after a warning, if the port is taken."""
    try:
        server = _Server(address, port, pages)
    except OSError as error:
        logger.warning("no /metrics and /progress on %s port %d, training goes on: %s", address, port, error)
        return
    threading.Thread(target=server.serve_forever, name="http", daemon=True).start()
    logger.info("serving /metrics, /healthz and /progress on %s port %d", address, server.server_address[1])
