"""One request to the API server: signing on, time limit, the few transport retries, and errors as our
exceptions.

Retries live in two places only: here for what passes by itself within a second (429, 5xx, a dropped
connection), and in the work queue for everything else. Nothing but ClusterError and its kinds leaves this
module.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any

import aiohttp

from sftjob_operator.cluster.base import AlreadyExists, ClusterError, Conflict, Manifest, NotFound, Rejected
from sftjob_operator.cluster.connection import Connection

REQUEST_SECONDS = 8.0  # below the renew deadline of the leader election
RETRY_DELAYS = (0.1, 0.4)
LONGEST_RETRY_AFTER = 2.0
JSON = "application/json"
METADATA_ONLY = "application/json;as=PartialObjectMetadata;v=v1;g=meta.k8s.io,application/json"
METADATA_LIST_ONLY = "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io,application/json"

LONGEST_LINE = 256 * 1024  # bytes; longer ones come in pieces

Socket = aiohttp.ClientWebSocketResponse
Observe = Callable[[str, str], None]
"""Told verb and status code (or `error`) of every answer."""


class ApiClient:
    """A pool of connections to one API server."""

    def __init__(self, connection: Connection, observe: Observe = lambda verb, code: None) -> None:
        """Must be made in the running loop."""
        self.connection = connection
        self._observe = observe
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=connection.ssl_context(), limit=64),
            timeout=aiohttp.ClientTimeout(total=REQUEST_SECONDS),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"User-Agent": "sftjob-operator"},
            proxy=connection.proxy,
        )
        name = connection.tls_server_name
        self._tls: dict[str, Any] = {"server_hostname": name} if name else {}

    async def close(self) -> None:
        """Drop the connections."""
        await self._session.close()

    async def json(
        self,
        verb: str,
        path: str,
        *,
        query: dict[str, str] | None = None,
        body: Any = None,
        content_type: str = JSON,
        accept: str = JSON,
    ) -> Manifest:
        """Send and read JSON; the exception for whatever the server refuses."""
        text = await self.text(verb, path, query=query, body=body, content_type=content_type, accept=accept)
        try:
            answer: Manifest = json.loads(text)
        except ValueError as error:
            raise ClusterError(f"{verb} {path}: the answer is not JSON: {text[:200]!r}") from error
        return answer

    async def text(
        self,
        verb: str,
        path: str,
        *,
        query: dict[str, str] | None = None,
        body: Any = None,
        content_type: str = JSON,
        accept: str = "*/*",
    ) -> str:
        """Send and read text, with the transport retries."""
        payload = None if body is None else json.dumps(body).encode()
        headers = {"Accept": accept} | ({} if payload is None else {"Content-Type": content_type})
        for delay in (*RETRY_DELAYS, None):
            try:
                code, text, retry_after = await self._send(verb, path, query, payload, headers)
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                self._observe(verb, "error")
                if delay is None:
                    raise ClusterError(f"{verb} {path}: {type(error).__name__}: {error}") from error
                await asyncio.sleep(delay)
                continue
            self._observe(verb, str(code))
            if code < 300:
                return text
            if delay is None or not (code == 429 or code >= 500):
                raise failure(verb, code, text)
            await asyncio.sleep(max(delay, min(retry_after, LONGEST_RETRY_AFTER)))
        raise AssertionError("unreachable")

    async def limited(self, url: str, limit_bytes: int, seconds: float, *, signed: bool) -> bytes | None:
        """GET from a place we do not trust: no redirect, no retry, a limit; None when not to be had."""
        # Unsigned is a pod's own server: an idle connection to each would be an open file a job, for a request in ten
        # seconds, after which the pod closes it anyway.
        headers = await self._authorization() if signed else {"Connection": "close"}
        timeout = aiohttp.ClientTimeout(total=seconds)
        try:
            async with self._session.get(
                url, headers=headers, allow_redirects=False, timeout=timeout, **self._tls
            ) as answer:
                if answer.status != 200:
                    return None
                body = bytearray()
                async for chunk in answer.content.iter_chunked(8192):
                    body += chunk
                    if len(body) > limit_bytes:
                        return None
                return bytes(body)
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError):
            return None

    async def lines(self, path: str, query: Mapping[str, str]) -> AsyncIterator[str]:
        """GET what comes line by line and may never end; the exception for whatever the server refuses."""
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=REQUEST_SECONDS)
        url, headers = self.connection.server + path, await self._authorization()
        try:
            async with self._session.get(
                url, params=query, headers=headers, timeout=timeout, allow_redirects=False, **self._tls
            ) as answer:
                if answer.status >= 300:
                    raise failure("GET", answer.status, await answer.text(errors="replace"))
                async for line in _lines(answer.content):
                    yield line
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise ClusterError(f"GET {path}: {type(error).__name__}: {error}") from error

    async def socket(self, path: str, query: Sequence[tuple[str, str]], protocol: str) -> Socket:
        """A WebSocket; the exception for whatever the server refuses."""
        url, headers = self.connection.server + path, await self._authorization()
        try:
            socket: Socket = await self._session.ws_connect(
                url,
                params=query,
                headers=headers,
                protocols=(protocol,),
                heartbeat=30.0,
                max_msg_size=0,
                **self._tls,
            )
            return socket
        except aiohttp.WSServerHandshakeError as error:
            raise failure("GET", error.status, error.message) from error
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise ClusterError(f"GET {path}: {type(error).__name__}: {error}") from error

    async def _send(
        self,
        verb: str,
        path: str,
        query: dict[str, str] | None,
        payload: bytes | None,
        headers: dict[str, str],
    ) -> tuple[int, str, float]:
        url = self.connection.server + path
        headers = headers | await self._authorization()
        async with self._session.request(
            verb, url, params=query, data=payload, headers=headers, allow_redirects=False, **self._tls
        ) as answer:
            text = await answer.text(encoding="utf-8", errors="replace")
            after = answer.headers.get("Retry-After", "")
            return answer.status, text, float(after) if after.isdigit() else 0.0

    async def _authorization(self) -> dict[str, str]:
        token = await self.connection.token()
        return {"Authorization": f"Bearer {token}"} if token else {}


async def _lines(stream: aiohttp.StreamReader) -> AsyncIterator[str]:
    rest = b""
    async for chunk in stream.iter_any():
        *whole, rest = (rest + chunk).split(b"\n")
        for line in whole:
            yield line.decode(errors="replace")
        if len(rest) > LONGEST_LINE:
            yield rest.decode(errors="replace")
            rest = b""
    if rest:
        yield rest.decode(errors="replace")


def failure(verb: str, code: int, text: str) -> ClusterError:
    """The exception for an answer of 300 and above; `text` is a metav1.Status if the API server wrote it."""
    try:
        status = json.loads(text)
        reason, message = str(status.get("reason") or code), str(status.get("message") or text[:500])
    except (ValueError, AttributeError):
        reason, message = str(code), text[:500]
    if code == 404:
        return NotFound(code, reason, message)
    if code == 409:
        kind = AlreadyExists if verb == "POST" and reason == "AlreadyExists" else Conflict
        return kind(code, reason, message)
    if code in (401, 408, 429) or code >= 500 or code < 400:
        return ClusterError(f"{reason} ({code}): {message}")
    return Rejected(code, reason, message)
