"""The slow resync: levels heal what edges missed.

Every SFTJob is looked at again now and then, and what the informer still shows although it is gone is hidden
from the view (cluster/view.py says why that happens).
"""

from __future__ import annotations

import asyncio
import logging

from sftjob_operator.cluster.base import ClusterError, Key
from sftjob_operator.cluster.view import IndexView
from sftjob_operator.scope import WATCHED, Lister, may_read
from sftjob_operator.settings import Settings
from sftjob_operator.workqueue import WorkQueue

logger = logging.getLogger(__name__)

SPREAD = 0.5  # of the period, so that a thousand jobs do not come due at once


async def resync(
    cluster: Lister, view: IndexView, queue: WorkQueue[Key], settings: Settings, watched: tuple[str, ...]
) -> None:
    """Until a namespace can be watched that is not among those `watched`: only another process takes it up."""
    left = [name for name in settings.namespaces if name not in watched]
    while True:
        await asyncio.sleep(settings.resync_seconds)
        try:
            for namespace in left:
                if await may_read(cluster, namespace):
                    logger.warning(
                        "namespace %s can be watched now: ending, to start again with it", namespace
                    )
                    return
            await hide_ghosts(cluster, view, watched)
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
        for api, kind, labels in WATCHED:
            there |= await cluster.uids(api, kind, namespace, labels)
    gone = held - there
    if gone:
        logger.info("%d objects had gone unnoticed", len(gone))
    view.hide(frozenset(gone))
