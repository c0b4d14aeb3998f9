"""A real browser without a window: opens a page, and tells what it drew, asked the network for, and complained about."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import functools
import os
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from machine import IN_CI, skip_or_fail

_NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
_IMAGES = "Array.from(document.images).map(i => ({alt: i.alt, width: i.naturalWidth, drawn: i.clientWidth}))"
_SECONDS = 60


@functools.cache
def chromium() -> str:
    """The program; in CI it is installed where it is missing, elsewhere the test is left out."""
    if not any(map(shutil.which, _NAMES)) and IN_CI and os.geteuid() == 0 and shutil.which("apt-get"):
        for command in (
            ["apt-get", "update", "-qq"],
            ["apt-get", "install", "-y", "-qq", "--no-install-recommends", "chromium"],
        ):
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL, timeout=500)
    found = next(filter(None, map(shutil.which, _NAMES)), None)
    if found is None:
        skip_or_fail("no Chromium on PATH (Debian, Ubuntu: apt-get install chromium)")
    assert found is not None
    return found


@dataclass
class Seen:
    """What came of opening a page."""

    images: list[dict[str, Any]] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)  # exceptions, console errors, refused content
    requests: list[str] = field(default_factory=list)  # beside the page itself and data: URIs
    text: str = ""
    width: int = 0  # of the content, in a window of 800
    picture: bytes = b""  # PNG of the whole page


def look(page: Path, *, dark: bool = False, width: int = 800) -> Seen:
    """Open `page` from disk."""
    return asyncio.run(_look(page, dark, width))


async def _look(page: Path, dark: bool, width: int) -> Seen:
    seen = Seen()
    async with asyncio.timeout(_SECONDS), _tab() as tab:
        for domain in ("Page", "Network", "Log", "Runtime"):
            await tab.call(f"{domain}.enable")
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        await tab.call("Emulation.setEmulatedMedia", features=[scheme])
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        await tab.call("Emulation.setDeviceMetricsOverride", **size)
        tab.events.clear()  # of the empty page
        gone = await tab.call("Page.navigate", url=page.as_uri())
        assert "errorText" not in gone, gone
        await tab.until("Page.loadEventFired")
        seen.images = await tab.value(_IMAGES)
        seen.text = await tab.value("document.body.innerText")
        seen.width = await tab.value("document.documentElement.scrollWidth")
        shot = await tab.call("Page.captureScreenshot", captureBeyondViewport=True)
        seen.picture = base64.b64decode(shot["data"])
        for event in tab.events:
            _note(event["method"], event["params"], page.as_uri(), seen)
    return seen


def _note(method: str, said: dict[str, Any], page: str, seen: Seen) -> None:
    if method == "Network.requestWillBeSent":
        url = said["request"]["url"]
        if url != page and not url.startswith("data:"):
            seen.requests.append(url)
    elif method == "Runtime.exceptionThrown":
        seen.complaints.append(str(said["exceptionDetails"]))
    elif method == "Runtime.consoleAPICalled" and said["type"] in ("error", "warning", "assert"):
        seen.complaints.append(str(said["args"]))
    elif method == "Log.entryAdded" and said["entry"]["level"] in ("error", "warning"):
        seen.complaints.append(said["entry"]["text"])


class Tab:
    """The DevTools protocol to one tab."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket, self._number, self.events = socket, 0, []

    async def call(self, method: str, **parameters: Any) -> Any:
        self._number += 1
        await self._socket.send_json({"id": self._number, "method": method, "params": parameters})
        while (answer := await self._socket.receive_json()).get("id") != self._number:
            self.events.append(answer)
        assert "error" not in answer, answer
        return answer["result"]

    async def until(self, method: str) -> None:
        while not any(event["method"] == method for event in self.events):
            self.events.append(await self._socket.receive_json())

    async def value(self, expression: str) -> Any:
        result = await self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        return result["result"]["value"]


@contextlib.asynccontextmanager
async def _tab() -> AsyncIterator[Tab]:
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        process = await asyncio.create_subprocess_exec(
            chromium(),
            *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"),
            *("--disable-background-networking", "--disable-extensions", "--hide-scrollbars"),
            *("--remote-debugging-port=0", f"--user-data-dir={profile}", "about:blank"),
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )
        try:
            port = await _port(Path(profile) / "DevToolsActivePort", process)
            async with aiohttp.ClientSession() as session:
                async with session.get(f"http://127.0.0.1:{port}/json/list") as answer:
                    tabs = [one for one in await answer.json() if one["type"] == "page"]
                async with session.ws_connect(tabs[0]["webSocketDebuggerUrl"], max_msg_size=0) as socket:
                    yield Tab(socket)
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            await process.wait()


async def _port(file: Path, process: asyncio.subprocess.Process) -> str:
    while not (file.is_file() and (lines := file.read_text().split())):
        assert process.returncode is None, "Chromium ended at once"
        await asyncio.sleep(0.05)
    return lines[0]
