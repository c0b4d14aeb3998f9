"""What all tests share."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Iterator

import pytest

# Ranks are many and cores are few.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")


def pytest_configure(config: pytest.Config) -> None:
    """looptime asks for "the" event loop in synchronous tests too, and nobody would close the one made for it."""
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    config.add_cleanup(loop.close)


@pytest.fixture(autouse=True)
def logs_end_with_their_test() -> Iterator[None]:
    """The operator, and `sftjob run`, set the root logger up: not for other tests, too."""
    root = logging.getLogger()
    before, level, raises = root.handlers[:], root.level, logging.raiseExceptions
    yield
    for handler in root.handlers:
        if handler not in before:
            handler.close()
    root.handlers[:] = before
    root.setLevel(level)
    logging.raiseExceptions = raises


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Fast tests first: an error in a pure function shows in seconds, not after the cluster is up."""

    order = ("slow", "processes", "model", "cluster")

    def cost(item: pytest.Item) -> int:
        names = {mark.name for mark in item.iter_markers()}
        return max((order.index(name) + 1 for name in names if name in order), default=0)

    items.sort(key=cost)
