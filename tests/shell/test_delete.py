"""`sftjob delete` in a cluster: what it waits for, and what it does not wait for."""

from __future__ import annotations

import io
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from sftjob_operator.cli import delete

LONG_AGO = {"deletionTimestamp": "2020-01-01T00:00:00Z"}


def pod(name: str, **metadata: Any) -> dict[str, Any]:
    return {
        "metadata": {"name": name, **metadata},
        "spec": {"nodeName": f"node-of-{name}"},
        "status": {"phase": "Running"},
    }


class Client:
    """Answers each list of pods with the next of `lists`, and the last for ever."""

    def __init__(self, lists: Sequence[list[dict[str, Any]]]) -> None:
        self.lists, self.deleted = list(lists), 0

    async def get(self, ref: Any) -> dict[str, Any]:
        return {"metadata": {"name": ref.name, "uid": "u"}}

    async def delete(self, ref: Any, *, uid: str) -> None:
        self.deleted += 1

    async def list(self, *args: Any) -> list[dict[str, Any]]:
        return self.lists.pop(0) if len(self.lists) > 1 else self.lists[0]


async def said(monkeypatch: pytest.MonkeyPatch, *lists: list[dict[str, Any]]) -> list[str]:
    monkeypatch.setattr(delete, "REMOTE_SECONDS", 0.0)
    text, client = io.StringIO(), Client(lists)
    place: Any = SimpleNamespace(namespace="team", client=client, words="a cluster")
    await delete.remote(place, "bot", True, Console(file=text))
    assert client.deleted == 1
    return text.getvalue().splitlines()


async def test_it_says_once_for_which_pods_it_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = pod("a"), pod("b")
    assert await said(monkeypatch, [a, b], [a, b], [b], []) == [
        "waiting for pod a on node node-of-a, pod b on node node-of-b",
        "waiting for pod b on node node-of-b",
        "bot is deleted; its files on the volume stay",
    ]


async def test_it_does_not_wait_for_pods_on_dead_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    lost = pod("b", **LONG_AGO)
    assert await said(monkeypatch, [pod("a"), lost], [lost]) == [
        "waiting for pod a on node node-of-a, pod b on node node-of-b",
        "bot is deleted but for pod b on node node-of-b, which does not answer: what is on it goes when the node is "
        "back or removed; its files on the volume stay",
    ]
