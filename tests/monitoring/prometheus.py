"""Prometheus and promtool: the machine's, or Debian's package unpacked into the cache (nothing is installed)."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from devcluster import paths
from machine import skip_or_fail


def program(name: str) -> Path:
    """`prometheus` or `promtool`; without either the test is skipped, in CI failed."""
    found = shutil.which(name)
    if found:
        return Path(found)
    unpacked = paths.cache() / "prometheus" / "usr" / "bin" / name
    if not unpacked.exists():
        try:
            _unpack(unpacked.parents[2])
        except (OSError, subprocess.CalledProcessError) as error:
            output = getattr(error, "stderr", b"") or b""
            skip_or_fail(f"no {name}, and Debian's package cannot be had: {error} {output[-300:]!r}")
    return unpacked


def _unpack(target: Path) -> None:
    with tempfile.TemporaryDirectory() as name:
        if not _download(name):
            subprocess.run(["apt-get", "update", "-qq"], check=True, capture_output=True)
            if not _download(name):
                raise FileNotFoundError("apt-get download prometheus")
        (package,) = Path(name).glob("prometheus_*.deb")
        unfinished = target.with_name(f"{target.name}.{os.getpid()}")
        subprocess.run(["dpkg-deb", "-x", package, unfinished], check=True, capture_output=True)
        with contextlib.suppress(OSError):  # another run was faster
            unfinished.rename(target)
        shutil.rmtree(unfinished, ignore_errors=True)


def _download(folder: str) -> bool:
    command = ["apt-get", "download", "-qq", "prometheus"]
    return subprocess.run(command, cwd=folder, capture_output=True).returncode == 0


class Prometheus:
    """A server with a store of its own that scrapes every second."""

    def __init__(self, url: str) -> None:
        self._url = url

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The result of an instant query; nothing while it starts."""
        return self._get("query", query=expression)

    def range(self, expression: str, start: float, end: float) -> list[dict[str, Any]]:
        """The result of a query over time, a value a second; ValueError in its words where the query is wrong."""
        return self._get("query_range", query=expression, start=start, end=end, step=1)

    def _get(self, what: str, **words: Any) -> list[dict[str, Any]]:
        address = f"{self._url}/api/v1/{what}?{urllib.parse.urlencode(words)}"
        try:
            with urllib.request.urlopen(address, timeout=20) as answer:
                return json.load(answer)["data"]["result"]
        except urllib.error.HTTPError as error:
            with error:
                if error.code == 503:  # it starts
                    return []
                raise ValueError(f"{words['query']}: {json.load(error)['error']}") from None
        except OSError:
            return []


@contextlib.contextmanager
def scraping(folder: Path, jobs: list[dict[str, Any]]) -> Iterator[Prometheus]:
    """A Prometheus with these scrape_configs, which has begun to scrape; its data is in `folder`."""
    binary = program("prometheus")
    config = folder / "prometheus.yml"
    config.write_text(
        json.dumps({"global": {"scrape_interval": "1s", "scrape_timeout": "1s"}, "scrape_configs": jobs})
    )
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = [f"--config.file={config}", f"--storage.tsdb.path={folder / 'data'}"]
    words += [f"--web.listen-address=127.0.0.1:{port}", "--query.lookback-delta=10s"]
    log = (folder / "prometheus.log").open("w")
    with log, subprocess.Popen([binary, *words], stdout=log, stderr=log) as server:
        try:
            made = Prometheus(f"http://127.0.0.1:{port}")
            deadline = time.monotonic() + 60
            while not made.query("up"):  # it looks for its targets five seconds after its start
                assert time.monotonic() < deadline, (folder / "prometheus.log").read_text()
                assert server.poll() is None, (folder / "prometheus.log").read_text()
                time.sleep(0.1)
            yield made
        finally:
            server.terminate()
            server.wait(30)
