"""The slow resync: levels heal what edges missed.

Every SFTJob is looked at again now and then, and what the informer still shows although it is gone is hidden
from the view (cluster/view.py says why that happens).
"""

from __future__ import annotations

import asyncio
import logging
from typing import NoReturn, Protocol

from sftjob_operator.api.names import LABEL_MANAGED_BY, MANAGED_BY
from sftjob_operator.api.v1alpha1 import API_VERSION, KIND
from sftjob_operator.cluster.base import ClusterError, Key
from sftjob_operator.cluster.view import IndexView
from sftjob_operator.settings import Settings
from sftjob_operator.workqueue import WorkQueue

logger = logging.getLogger(__name__)

SPREAD = 0.5  # of the period, so that a thousand jobs do not come due at once


class Lister(Protocol):
    """What a resync asks of a cluster."""

    async def uids(self, api: str, kind: str, namespace: str, labels: dict[str, str]) -> set[str]:
        """Which objects there are."""


async def resync(cluster: Lister, view: IndexView, queue: WorkQueue[Key], settings: Settings) -> NoReturn:
    """For ever."""
    while True:
        await asyncio.sleep(settings.resync_seconds)
        try:
            await hide_ghosts(cluster, view, settings.namespaces)
        except ClusterError as error:
            logger.warning("resync: %s", error)
        keys = view.keys()
        for number, key in enumerate(keys):
            queue.add(key, after=number / len(keys) * settings.resync_seconds * SPREAD)


async def hide_ghosts(cluster: Lister, view: IndexView, namespaces: tuple[str, ...]) -> None:
    """What the view held before the lists were made, and the lists have not, is gone."""
    held = view.uids()
    there: set[str] = set()
    for namespace in namespaces or ("",):
        there |= await cluster.uids(API_VERSION, KIND, namespace, {})
        there |= await cluster.uids("batch/v1", "Job", namespace, {LABEL_MANAGED_BY: MANAGED_BY})
    gone = held - there
    if gone:
        logger.info("%d objects had gone unnoticed", len(gone))
    view.hide(frozenset(gone))
