"""`python -m sftjob_operator`: wires the parts together, runs them until SIGTERM or until one of them ends.

Nothing here recovers: when the election, the workers or the watch end, the process ends, and Kubernetes
starts another.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Coroutine
from typing import Any, cast

import kopf

from sftjob_operator import handlers, logs
from sftjob_operator.api.v1alpha1 import API_VERSION, PLURAL
from sftjob_operator.cluster.base import ClusterError, Key
from sftjob_operator.cluster.connection import Connection, NoCluster, connect
from sftjob_operator.cluster.kubernetes import KubernetesCluster
from sftjob_operator.cluster.view import IndexView
from sftjob_operator.health import application, serving
from sftjob_operator.leader import Election, lease_ref
from sftjob_operator.metrics import Metrics
from sftjob_operator.planning.hardware import quantity_bytes
from sftjob_operator.reconcile import Reconciler
from sftjob_operator.resync import resync
from sftjob_operator.scope import watchable
from sftjob_operator.settings import Settings
from sftjob_operator.worker import Workers
from sftjob_operator.workqueue import WorkQueue

logger = logging.getLogger("sftjob_operator")

STOP_SECONDS = 1.8  # after SIGTERM the process is gone by then, whatever hangs
KOPF_STOP_SECONDS = 0.8
CRD_RETRY_SECONDS = 2.0


class Operator:
    """The parts of one operator process, in the order in which they start."""

    def __init__(self, settings: Settings, connection: Connection) -> None:
        """Must be made in the running loop. Nothing is contacted yet."""
        self.settings, self.connection = settings, connection
        self.stop = asyncio.Event()
        self.metrics = Metrics()
        self.cluster = KubernetesCluster(connection, self.metrics.on_request)
        self.view = IndexView()
        self.queue: WorkQueue[Key] = WorkQueue(line=lambda key: key.namespace)
        self.reconciler = Reconciler(
            self.cluster, self.view, settings, watch_lag=self.metrics.on_watch_lag, call=self.queue.add
        )
        self.workers = Workers(self.queue, self.reconciler.reconcile, settings.workers, self.metrics.on_pass)
        self.metrics.watch(self.queue, self.view, self.reconciler.progress, self.reconciler.places.shares)

    async def run(self) -> int:
        """Until told to stop (0) or until a part has ended (1)."""
        self._listen_to_signals()
        app = application(self.workers.stuck, lambda: None, self.metrics.exposition)
        try:
            async with (
                serving(app, self.settings.http_host, self.settings.http_port),
                self._leadership() as lost,
            ):
                if not self.stop.is_set():
                    await self._work(lost)
        finally:
            await self.cluster.close()
        return 0 if self.stop.is_set() else 1

    @contextlib.asynccontextmanager
    async def _leadership(self) -> AsyncIterator[asyncio.Task[Any]]:
        """Lead inside the block; the task ends when leadership is lost, and with it the process."""
        if not self.settings.lease_namespace:
            self.metrics.watch_leader(lambda: True)
            async with _owned(self.stop.wait(), "no election") as never:
                yield never
            return
        lease = lease_ref(self.settings.lease_namespace, self.settings.lease_name)
        election = Election(self.cluster, lease, self.settings.identity or socket.gethostname())
        self.metrics.watch_leader(lambda: election.leading)
        try:
            async with _owned(election.acquire(), "election") as acquire:
                await self._until_stop(acquire)
            async with _owned(election.hold(), "lease") as lost:
                lost.add_done_callback(self._lost)
                yield lost
        finally:
            await election.release()

    async def _work(self, lost: asyncio.Task[Any]) -> None:
        async with _owned(self._served(), "CRD") as served:
            await self._until_stop(served, lost)
        if self.stop.is_set():
            return
        async with _owned(watchable(self.cluster, self.settings.namespaces), "scope") as scope:
            await self._until_stop(scope, lost)
        if self.stop.is_set():
            return
        watched = scope.result()
        self.metrics.on_watch()
        async with (
            _owned(self._inform(watched), "informer") as informer,
            _owned(resync(self.cluster, self.view, self.queue, self.settings, watched), "resync") as slow,
            _owned(self.workers.run(), "workers") as workers,
        ):
            await self._until_stop(informer, slow, workers, lost)

    async def _served(self) -> None:
        """Wait for the CRD: Kopf looks for it once, when it starts, and would serve nothing ever after."""
        while True:
            try:
                if await self.cluster.serves(API_VERSION, PLURAL):
                    return
                logger.warning(
                    "the API server does not know %s of %s: is the CRD installed?", PLURAL, API_VERSION
                )
            except ClusterError as error:
                logger.warning("the API server cannot be asked: %s", error)
            await asyncio.sleep(CRD_RETRY_SECONDS)

    async def _inform(self, watched: tuple[str, ...]) -> None:
        settings = kopf.OperatorSettings()
        handlers.configure(settings)
        before = asyncio.all_tasks()
        tasks = await kopf.spawn_tasks(
            registry=handlers.registry(self.view, self.queue, self.connection),
            settings=settings,
            standalone=True,
            clusterwide=not watched,
            namespaces=watched,
            # Else Kopf asks for the user's name, and a bare UID has none.
            identity=cast(Any, "sftjob-operator"),
        )
        self._listen_to_signals()  # Kopf has put its own handlers in their place
        await kopf.run_tasks(tasks, ignored=before)

    async def _until_stop(self, *tasks: asyncio.Task[Any]) -> None:
        """Until SIGTERM or the end of one of them, whose exception is raised."""
        async with _owned(self.stop.wait(), "stop") as stopped:
            done, _ = await asyncio.wait({*tasks, stopped}, return_when=asyncio.FIRST_COMPLETED)
        for task in done - {stopped}:
            task.result()

    def _lost(self, task: asyncio.Task[Any]) -> None:
        """Another replica may work from now on: end without a further request, whatever is under way."""
        if task.cancelled():
            return
        why = task.exception() or task.result()
        logger.critical("leadership lost, ending at once: %s", why)
        logging.shutdown()
        os._exit(1)

    def _listen_to_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop, number)

    def _stop(self, number: signal.Signals) -> None:
        if not self.stop.is_set():
            logger.info("stopping on %s", number.name)
            self.stop.set()
            asyncio.get_running_loop().call_later(STOP_SECONDS, os._exit, 1)


@contextlib.asynccontextmanager
async def _owned(work: Coroutine[Any, Any, Any], name: str) -> AsyncIterator[asyncio.Task[Any]]:
    """A task that lives no longer than the block."""
    task = asyncio.create_task(work, name=name)
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.wait({task}, timeout=KOPF_STOP_SECONDS)


async def _main(settings: Settings) -> int:
    return await Operator(settings, await connect()).run()


def main() -> int:
    """0 after SIGTERM, 1 when a part ended, 2 for a wrong setting or no cluster."""
    try:
        settings = Settings.from_environment()
        logs.configure(settings.log_format, settings.log_level)
        quantity_bytes(settings.gpu_memory or 0)
    except ValueError as error:
        return _refuse(str(error))
    try:
        return asyncio.run(_main(settings))
    except NoCluster as error:
        return _refuse(str(error))


def _refuse(why: str) -> int:
    sys.stderr.write(f"sftjob_operator: {why}\n")
    return 2


if __name__ == "__main__":
    code = main()
    logging.shutdown()
    os._exit(code)  # nothing is left to tidy, and tearing the interpreter down takes a second or more
