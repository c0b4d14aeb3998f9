"""Kopf as the informer: two indices, and handlers that put a key into the queue. No decision is taken here.

Only `index` and `on.event` are used: Kopf's other handlers write a finalizer and annotations into every
object before anything useful happens. This is the one module that knows Kopf (with __main__, which runs it).
"""

from __future__ import annotations

from typing import Any

import kopf

from sftjob_operator.api.names import LABEL_JOB, LABEL_MANAGED_BY, MANAGED_BY
from sftjob_operator.api.v1alpha1 import GROUP, PLURAL, VERSION
from sftjob_operator.cluster.base import Key, Manifest
from sftjob_operator.cluster.connection import Connection
from sftjob_operator.cluster.view import IndexView, key_of_child, key_of_sftjob, slim, slim_job
from sftjob_operator.workqueue import WorkQueue

JOB_SELECTOR = f"{LABEL_MANAGED_BY}={MANAGED_BY},{LABEL_JOB}"


def configure(settings: kopf.OperatorSettings) -> None:
    """Every setting that differs from Kopf's default, and why."""
    settings.scanning.disabled = (
        True  # kinds and namespaces are known: no rights on CRDs and namespaces needed
    )
    settings.peering.standalone = True  # the Lease elects; Kopf's peering freezes replicas of equal priority
    settings.watching.label_selectors["jobs"] = JOB_SELECTOR  # other people's Jobs never reach this process
    settings.watching.chunk_size = 500  # no memory peak at the first list
    settings.networking.request_timeout = 30  # the default of 5 minutes looks like a hang
    settings.posting.enabled = False  # Events are ours, written after the status
    settings.queueing.exit_timeout = 0.5  # its workers only enqueue: nothing to finish on SIGTERM
    settings.process.ultimate_exiting_timeout = None  # __main__ has its own limit


def registry(view: IndexView, queue: WorkQueue[Key], connection: Connection) -> kopf.OperatorRegistry:
    """An own registry: Kopf's global one would be shared between operators in one test process."""
    handlers = kopf.OperatorRegistry()

    @kopf.on.login(registry=handlers)
    async def login(**_: Any) -> kopf.ConnectionInfo:
        return await login_to(connection)

    @kopf.on.startup(registry=handlers)
    async def bind(**kwargs: Any) -> None:
        view.bind(kwargs["sftjobs"], kwargs["jobs"])

    @kopf.index(GROUP, VERSION, PLURAL, id="sftjobs", registry=handlers)
    async def index_sftjob(body: kopf.Body, **_: Any) -> dict[Key, Manifest]:
        return {key_of_sftjob(body): slim(body)}

    @kopf.index("batch", "v1", "jobs", id="jobs", registry=handlers)
    async def index_job(body: kopf.Body, **_: Any) -> dict[Key, Manifest] | None:
        key = key_of_child(body)
        return None if key is None else {key: slim_job(body)}

    @kopf.on.event(GROUP, VERSION, PLURAL, registry=handlers)
    async def sftjob_changed(body: kopf.Body, **_: Any) -> None:
        queue.add(key_of_sftjob(body))

    @kopf.on.event("batch", "v1", "jobs", registry=handlers)
    async def job_changed(body: kopf.Body, **_: Any) -> None:
        key = key_of_child(body)
        if key is not None:
            queue.add(key)

    return handlers


async def login_to(connection: Connection) -> kopf.ConnectionInfo:
    """Kopf signs on as we do; on 401 it asks again and gets the rotated token."""
    return kopf.ConnectionInfo(
        server=connection.server,
        ca_path=connection.ca_path,
        insecure=not connection.verify,
        token=await connection.token(),
        certificate_path=connection.certificate_path,
        private_key_path=connection.key_path,
    )
