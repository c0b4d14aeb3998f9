"""Which of the namespaces that are to be watched can be.

A namespace that is deleted takes the operator's RoleBinding along. Kopf ends at the first list that is forbidden, and
waits for every one before it shows anything: a single such namespace would stop the operator for all others.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Protocol

from sftjob_operator.api.names import LABEL_MANAGED_BY, MANAGED_BY
from sftjob_operator.api.v1alpha1 import API_VERSION, KIND
from sftjob_operator.cluster.base import ClusterError, Rejected

logger = logging.getLogger(__name__)

WATCHED: tuple[tuple[str, str, dict[str, str]], ...] = (
    (API_VERSION, KIND, {}),
    ("batch/v1", "Job", {LABEL_MANAGED_BY: MANAGED_BY}),
)
RETRY_SECONDS = 2.0


class Lister(Protocol):
    """What is asked of a cluster here, and by a resync."""

    async def uids(self, api: str, kind: str, namespace: str, labels: dict[str, str]) -> set[str]:
        """Which objects there are."""


async def watchable(cluster: Lister, namespaces: tuple[str, ...]) -> tuple[str, ...]:
    """Those in which the operator has its rights, as soon as there is one; none stands for the whole cluster."""
    told: tuple[str, ...] = ()
    while namespaces:
        try:
            found = tuple([name for name in namespaces if await may_read(cluster, name)])
        except ClusterError as error:
            logger.warning("the API server cannot be asked: %s", error)
        else:
            left = tuple(name for name in namespaces if name not in found)
            if left and left != told:
                told = left
                words = "not watched, for SFTJobs and Jobs may not be read there (is the namespace gone?): %s"
                logger.warning(words, ", ".join(left))
            if found:
                return found
        await asyncio.sleep(RETRY_SECONDS)
    return ()


async def may_read(cluster: Lister, namespace: str) -> bool:
    """Whether what is watched can be listed there."""
    try:
        for api, kind, labels in WATCHED:
            await cluster.uids(api, kind, namespace, labels)
    except Rejected as error:
        if error.code in (403, 404):
            return False
        raise
    return True
