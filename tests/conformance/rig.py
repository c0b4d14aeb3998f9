"""What the conformance tests need of a cluster: the protocol, a namespace, and pods that can start in it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from sftjob_operator.cluster.base import Cluster, Manifest, Ref

CONTAINER = "trainer"
RESTRICTED = {
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "runAsNonRoot": True,
    "seccompProfile": {"type": "RuntimeDefault"},
}


@dataclass(frozen=True)
class Rig:
    cluster: Cluster
    namespace: str
    image: str = "any"
    env: tuple[Manifest, ...] = ()
    volumes: tuple[Manifest, ...] = ()
    mounts: tuple[Manifest, ...] = ()
    seconds: float = 30.0
    """How long anything may take before the test fails."""
    workspace: Manifest = field(default_factory=dict)

    def ref(self, kind: str, name: str, api: str = "v1") -> Ref:
        return Ref(api, kind, self.namespace, name)

    def config_map(self, name: str, data: dict[str, str], **more: Any) -> Manifest:
        metadata = {"name": name, "namespace": self.namespace, **more.pop("metadata", {})}
        return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data, **more}

    def sftjob(self, name: str, **spec: Any) -> Manifest:
        whole = {
            "model": {"path": "models/base"},
            "data": {"train": [{"path": "datasets/a.jsonl"}]},
            "workspace": {"claimName": "nowhere"},
            **spec,
        }
        metadata = {"name": name, "namespace": self.namespace}
        return {"apiVersion": "sftjob.dev/v1alpha1", "kind": "SFTJob", "metadata": metadata, "spec": whole}

    def job(
        self, name: str, code: str, *, pods: int = 2, env: tuple[Manifest, ...] = (), **more: Any
    ) -> Manifest:
        """An Indexed Job of the shape the operator makes, whose container runs `code`."""
        container = {
            "name": CONTAINER,
            "image": self.image,
            "imagePullPolicy": "Never",
            "command": ["python", "-c", code],
            "env": [*self.env, *env],
            "securityContext": RESTRICTED,
            "volumeMounts": [*self.mounts, *more.pop("mounts", ())],
        }
        pod = {
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": more.pop("grace", 5),
            "automountServiceAccountToken": False,
            "subdomain": name,
            "containers": [container],
            "volumes": [*self.volumes, *more.pop("volumes", ())],
        }
        spec = {
            "completionMode": "Indexed",
            "completions": pods,
            "parallelism": pods,
            "backoffLimit": 0,
            "podReplacementPolicy": "Failed",
            "podFailurePolicy": {"rules": [_rule("In", 71), _rule("In", 74), _rule("NotIn", 0)]},
            "template": {"metadata": {"labels": {"run": name}}, "spec": pod},
            **more,
        }
        return {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": {"name": name, "namespace": self.namespace, "labels": {"suite": "conformance"}},
            "spec": spec,
        }

    async def get(self, kind: str, name: str, api: str = "v1") -> Manifest:
        found = await self.cluster.get(self.ref(kind, name, api))
        assert found is not None, f"{kind} {name} is gone"
        return found

    async def pods(self, job: str) -> list[Manifest]:
        found = await self.cluster.list("v1", "Pod", self.namespace, {"run": job})
        return sorted(found, key=lambda pod: pod["metadata"]["name"])

    async def condition(self, job: str, type_: str) -> Manifest | None:
        """The condition once it is True."""
        conditions = (await self.get("Job", job, "batch/v1")).get("status", {}).get("conditions", [])
        return next((one for one in conditions if one["type"] == type_ and one["status"] == "True"), None)

    async def finished(self, job: str, type_: str) -> Manifest:
        return await self.until(
            lambda: self.condition(job, type_), f"{job}: {type_}", lambda: self.get("Job", job, "batch/v1")
        )

    async def running(self, job: str, count: int) -> list[Manifest]:
        """That many pods, all Running and none on its way out."""

        async def look() -> list[Manifest] | None:
            pods = [pod for pod in await self.pods(job) if "deletionTimestamp" not in pod["metadata"]]
            all_run = len(pods) == count and all(
                pod.get("status", {}).get("phase") == "Running" for pod in pods
            )
            return pods if all_run else None

        return await self.until(look, f"{count} running pods of {job}", lambda: self.pods(job))

    async def until(
        self,
        look: Callable[[], Awaitable[Any]],
        what: str,
        diagnose: Callable[[], Awaitable[Any]] | None = None,
    ) -> Any:
        deadline = time.monotonic() + self.seconds
        while time.monotonic() < deadline:
            value = await look()
            if value:
                return value
            await asyncio.sleep(0.1)
        raise AssertionError(
            f"{what}: not within {self.seconds:.0f} s; {await diagnose() if diagnose else ''}"
        )


def terminated(pod: Manifest) -> Manifest:
    """How the pod's container ended."""
    return pod["status"]["containerStatuses"][0]["state"]["terminated"]


def _rule(operator: str, *codes: int) -> Manifest:
    requirement = {"containerName": CONTAINER, "operator": operator, "values": list(codes)}
    return {"action": "FailJob", "onExitCodes": requirement}
