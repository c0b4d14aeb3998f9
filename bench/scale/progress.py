"""One server that is rank 0 of every job: an address of the loopback network each, on the launcher's port.

It remembers when each was asked, which bounds the age of what the operator knows at any time between two scrapes.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime

from aiohttp import web

from sft_trainer.config import METRICS_PORT, Progress

IDLE_SECONDS = 10.0  # as the launcher: a connection without a request is closed
STEPS = 1_000_000


class Rank0:
    """All of them."""

    def __init__(self, jobs: int) -> None:
        """An address per job."""
        self._addresses = [f"127.64.{number // 250}.{number % 250 + 1}" for number in range(jobs)]
        self._given = iter(self._addresses)
        self._began = time.monotonic()
        self._asked: dict[str, float] = {}
        self.gaps: dict[str, float] = {}

    def address(self) -> str:
        """The next pod's."""
        return next(self._given)

    def reset(self) -> None:
        """Longest gaps are measured from here on."""
        self.gaps = {}

    @property
    def silence(self) -> float:
        """Seconds since the one that has waited for longest was asked."""
        return max((time.monotonic() - asked for asked in self._asked.values()), default=0.0)

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        """While the block runs."""
        app = web.Application()
        app.add_routes([web.get("/progress", self._progress)])
        runner = web.AppRunner(app, access_log=None, keepalive_timeout=IDLE_SECONDS, shutdown_timeout=0.2)
        await runner.setup()
        try:
            for address in self._addresses:
                await web.TCPSite(runner, address, METRICS_PORT).start()
            yield
        finally:
            await runner.cleanup()

    async def _progress(self, request: web.Request) -> web.Response:
        now, address = time.monotonic(), request.url.host or ""
        if address in self._asked:
            self.gaps[address] = max(self.gaps.get(address, 0.0), now - self._asked[address])
        self._asked[address] = now
        step = int(now - self._began)
        told = Progress(
            attempt=1,
            run_id="bench",
            state="Training",
            step=step,
            total_steps=STEPS,
            loss=2.0 - step / STEPS,
            tokens_per_second=41250.0,
            estimated_remaining_seconds=STEPS - step,
            last_verified_step=step // 60 * 60,
            time=datetime.now(UTC).isoformat(),
        )
        return web.Response(body=told.to_json().encode(), content_type="application/json")
