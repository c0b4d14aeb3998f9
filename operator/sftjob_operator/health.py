"""The operator's HTTP server: /healthz, /readyz and /metrics.

Healthy means that the workers move, not that a web server answers. Ready means that the process has started:
a standby is ready without leading, or `helm --wait` and disruption budgets would hang on it.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable

from aiohttp import web

from sftjob_operator.metrics import CONTENT_TYPE

Trouble = Callable[[], str | None]
"""What is wrong in a sentence, None when nothing is."""


def application(healthy: Trouble, ready: Trouble, exposition: Callable[[], bytes]) -> web.Application:
    """The three pages."""

    async def healthz(_: web.Request) -> web.Response:
        return _probe(healthy())

    async def readyz(_: web.Request) -> web.Response:
        return _probe(ready())

    async def metrics(_: web.Request) -> web.Response:
        return web.Response(body=exposition(), headers={"Content-Type": CONTENT_TYPE})

    app = web.Application()
    app.add_routes([web.get("/healthz", healthz), web.get("/readyz", readyz), web.get("/metrics", metrics)])
    return app


@contextlib.asynccontextmanager
async def serving(app: web.Application, host: str, port: int) -> AsyncIterator[None]:
    """Serve while the block runs; connections that are open at its end get no time to linger."""
    runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=0.2)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port).start()
        yield
    finally:
        await runner.cleanup()


def _probe(trouble: str | None) -> web.Response:
    return web.Response(text=trouble or "ok", status=503 if trouble else 200)
