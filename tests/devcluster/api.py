"""The few questions the cluster's own start asks its API server, with nothing but the standard library."""

from __future__ import annotations

import functools
import json
import ssl
import urllib.error
import urllib.request
from typing import Any

from devcluster import credentials, paths


def call(method: str, path: str, body: dict[str, Any] | None = None) -> tuple[int, Any]:
    """One request as administrator; status 0 for no answer."""
    token, authority = credentials.admin()
    request = urllib.request.Request(paths.API_URL + path, method=method)
    request.add_header("Authorization", f"Bearer {token}")
    if body is not None:
        request.data = json.dumps(body).encode()
        request.add_header("Content-Type", "application/json")
    opener = urllib.request.build_opener(
        # The machine may have a proxy for the outside; the bridge is inside.
        urllib.request.ProxyHandler({}),
        urllib.request.HTTPSHandler(context=_context(authority, token)),
    )
    try:
        with opener.open(request, timeout=5) as answer:
            return answer.status, _parsed(answer.read())
    except urllib.error.HTTPError as error:
        with error:
            return error.code, _parsed(error.read())
    except OSError:
        return 0, None


def is_ready() -> bool:
    return paths.kubeconfig().exists() and call("GET", "/readyz")[0] == 200


def ready_nodes() -> set[str]:
    _, nodes = call("GET", "/api/v1/nodes")
    return {
        item["metadata"]["name"]
        for item in (nodes or {}).get("items", [])
        for condition in item["status"].get("conditions", [])
        if condition["type"] == "Ready" and condition["status"] == "True"
    }


@functools.lru_cache(maxsize=4)
def _context(authority: str, token: str) -> ssl.SSLContext:
    """Loading a CA is slow; the token in the key tells one cluster's CA from the next one's."""
    return ssl.create_default_context(cafile=authority)


def _parsed(text: bytes) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text.decode(errors="replace")
