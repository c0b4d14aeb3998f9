"""Pods that nobody runs: they are declared running, or prepared, as soon as the Job controller has made them.

The pods' node selector fits no node, so no kubelet ever sees them. KWOK would fake the nodes as well, but neither the
termination message of a preparation nor an address at which /progress answers.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

from sftjob_operator.api import names
from sftjob_operator.cluster.base import ClusterError
from sftjob_operator.cluster.http import ApiClient

SELECTOR = {"bench": "nobody-runs-this"}
MERGE = "application/merge-patch+json"
INDEX = "batch.kubernetes.io/job-completion-index"
AT_A_TIME = 16

Manifest = dict[str, Any]


class Kubelet:
    """Watches the pods of all SFTJobs and writes their status."""

    def __init__(self, api: ApiClient, prepared: str, address: Callable[[], str]) -> None:
        """`prepared` is the termination message of a preparation, `address` gives the next pod's IP."""
        self._api, self._prepared, self._address = api, prepared, address
        self._known: set[str] = set()
        self._slots = asyncio.Semaphore(AT_A_TIME)

    async def run(self) -> None:
        """For ever."""
        query = {"labelSelector": f"{names.LABEL_MANAGED_BY}={names.MANAGED_BY}"}
        async with asyncio.TaskGroup() as group:
            while True:
                try:
                    listed = await self._api.json("GET", "/api/v1/pods", query=query)
                    for pod in listed["items"]:
                        self._meet(group, pod)
                    since = {"watch": "true", "resourceVersion": listed["metadata"]["resourceVersion"]}
                    async for line in self._api.lines("/api/v1/pods", query | since):
                        change = json.loads(line)
                        if change["type"] == "ADDED":
                            self._meet(group, change["object"])
                except ClusterError:
                    await asyncio.sleep(1)

    def _meet(self, group: asyncio.TaskGroup, pod: Manifest) -> None:
        if pod["metadata"]["uid"] not in self._known:
            self._known.add(pod["metadata"]["uid"])
            group.create_task(self._settle(pod))

    async def _settle(self, pod: Manifest) -> None:
        metadata = pod["metadata"]
        path = f"/api/v1/namespaces/{metadata['namespace']}/pods/{metadata['name']}/status"
        status = self._status(metadata)
        async with self._slots:
            try:
                await self._api.json("PATCH", path, body={"status": status}, content_type=MERGE)
            except ClusterError:  # deleted at the end of the bench
                return

    def _status(self, metadata: Manifest) -> Manifest:
        container: Manifest = {"name": names.CONTAINER, "image": "i", "imageID": "", "restartCount": 0}
        if metadata["labels"][names.LABEL_ROLE] == names.ROLE_PREPARE:
            ended = {"exitCode": 0, "reason": "Completed", "message": self._prepared}
            container |= {"ready": False, "state": {"terminated": ended}}
            return {"phase": "Succeeded", "containerStatuses": [container]}
        ip = self._address() if metadata["labels"].get(INDEX) == "0" else "127.0.0.2"
        return {
            "phase": "Running",
            "podIP": ip,
            "podIPs": [{"ip": ip}],
            "conditions": [{"type": "Ready", "status": "True"}],
            "containerStatuses": [container | {"ready": True, "state": {"running": {}}}],
        }
