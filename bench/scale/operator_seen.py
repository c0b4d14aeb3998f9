"""What can be seen of the operator from outside: its process, its /metrics, and its writes in the audit log."""

from __future__ import annotations

import json
import os
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

PORT = 18080  # of its /metrics, on the loopback network

Samples = dict[str, list[tuple[dict[str, str], float]]]


class Process:
    """A process by its pid."""

    def __init__(self, pid: int) -> None:
        """Of a process that lives."""
        self._folder = Path(f"/proc/{pid}")

    @property
    def cpu_seconds(self) -> float:
        """User and system time so far."""
        fields = (self._folder / "stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    @property
    def rss_mib(self) -> float:
        """Resident memory."""
        line = next(
            row for row in (self._folder / "status").read_text().splitlines() if row.startswith("VmRSS")
        )
        return int(line.split()[1]) / 1024

    @property
    def files(self) -> int:
        """Open file descriptors, sockets included."""
        return len(list((self._folder / "fd").iterdir()))


async def scrape() -> tuple[Samples, float]:
    """All samples by name, and how long the answer took."""
    began = time.monotonic()
    async with aiohttp.ClientSession() as session, session.get(f"http://127.0.0.1:{PORT}/metrics") as answer:
        text = await answer.text()
    took = time.monotonic() - began
    found: Samples = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, []).append((sample.labels, sample.value))
    return found, took


class AuditLog:
    """Writes of SFTJobs' status from now on; follows the file through a rotation."""

    def __init__(self, path: Path) -> None:
        """What stands there already does not count."""
        self._path = path
        self._file = path.open()
        self._file.seek(0, os.SEEK_END)
        self._rest = ""
        self.writes: dict[str, list[float]] = {}

    def follow(self) -> None:
        """Read what has been added."""
        self._take(self._file.read())
        if self._path.stat().st_ino != os.fstat(self._file.fileno()).st_ino:
            self._take(self._file.read())
            self._file.close()
            self._file = self._path.open()
            self._take(self._file.read())

    def _take(self, text: str) -> None:
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            if '"subresource":"status"' in line:
                self._note(json.loads(line))

    def _note(self, event: dict[str, Any]) -> None:
        what = event.get("objectRef") or {}
        if event["stage"] != "ResponseComplete":
            return
        if (what.get("resource"), what.get("subresource"), event["verb"]) == ("sftjobs", "status", "patch"):
            moment = datetime.fromisoformat(event["stageTimestamp"]).timestamp()
            self.writes.setdefault(f"{what['namespace']}/{what['name']}", []).append(moment)
