"""The kubelet of a local cluster: a pod becomes a supervised process, and its state becomes the pod's status.

Level-triggered like everything else: `sync` looks at the pod's directory and at its process, and does the next thing.
It neither knows nor cares whether this process or an earlier one started the container.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from sft_trainer.config import ENV_CPUS, ENV_HOSTS
from sftjob_operator.cluster.base import Event, Manifest, Ref, ref_of
from sftjob_operator.cluster.local import addresses, devices, environment, node, podstatus, supervise, volumes
from sftjob_operator.cluster.local.objects import is_terminal, is_terminating, owner_refs
from sftjob_operator.cluster.local.processes import Processes
from sftjob_operator.cluster.local.store import Store
from sftjob_operator.cluster.local.volumes import Mount, NotYetError

logger = logging.getLogger(__name__)

GRACE_SECONDS = 30

Emit = Callable[[Manifest, Event], None]


class Kubelet:
    """The pods of one state directory."""

    def __init__(self, state: Path, store: Store, machine: Mapping[str, str], emit: Emit) -> None:
        """`machine` is the environment that every container gets; `emit` posts Events about pods."""
        self._state, self._store, self.machine, self._emit = state, store, machine, emit
        self._processes = Processes()

    def sync(self, pod: Manifest) -> None:
        """Do what is next for this pod."""
        directory = self.directory(pod)
        if is_terminal(pod):
            if is_terminating(pod) and not pod["metadata"].get("finalizers"):
                self._remove(pod, directory)
        elif self._processes.was_started(directory):
            self._watch(pod, directory)
        elif is_terminating(pod):
            self._store.put(podstatus.never_started(pod))
        else:
            self._start(pod, directory)

    def kill(self, pod: Manifest) -> None:
        """End its processes now."""
        self._processes.stop(self.directory(pod), at_once=True)

    def sweep(self) -> None:
        """Remove what pods left that are no more: this process may have died between two steps."""
        known = {self.directory(pod) for pod in self._store.select("v1", "Pod")}
        for directory in (self._state / "pods").glob("*/*"):
            if directory not in known:
                self._processes.end(directory)
                shutil.rmtree(directory, ignore_errors=True)

    def is_running(self, pod: Manifest) -> bool:
        """Whether its process lives."""
        return self._processes.is_running(self.directory(pod))

    def directory(self, pod: Manifest) -> Path:
        """Where everything of this pod lies."""
        ref = ref_of(pod)
        return self._state / "pods" / ref.namespace / f"{ref.name}.{pod['metadata']['uid'][:8]}"

    def log(self, pod: Manifest) -> Path:
        """What its container has written to stdout and stderr."""
        return self.directory(pod) / supervise.LOG_FILE

    def hosts_file(self, namespace: str) -> Path:
        """The names of the pods of a namespace."""
        return self._state / "hosts" / namespace

    def _watch(self, pod: Manifest, directory: Path) -> None:
        running = self._processes.is_running(directory)  # asked before the exit: it may end in between
        end = self._processes.exit(directory)
        if end is None and running:
            if is_terminating(pod):
                self._processes.stop(directory)
            return
        self._store.put(podstatus.ended(pod, end, podstatus.termination_message(pod, directory)))
        if end is not None and end.code:
            logger.info("pod %s ended with exit code %d", pod["metadata"]["name"], end.code)
        self._processes.forget(directory)
        shutil.rmtree(directory / "volumes", ignore_errors=True)  # emptyDirs end with the pod

    def _start(self, pod: Manifest, directory: Path) -> None:
        try:
            ready = self._placed(pod)
            self._write_container(ready, directory)
        except NotYetError as error:
            waiting = podstatus.waiting(pod, error)
            if waiting["status"] != pod["status"]:
                self._store.put(waiting)
                self._emit(pod, Event("Warning", error.reason, error.message))
            return
        # Names first: a launcher looks for rank 0 as soon as it runs.
        self._store.put(podstatus.running(ready))
        self.write_hosts()
        self._processes.start(directory)

    def write_hosts(self) -> None:
        """Keep the files of names in step with the pods."""
        pods = self._store.select("v1", "Pod")
        for namespace in {ref_of(pod).namespace for pod in pods}:
            text = addresses.hosts((pod for pod in pods if ref_of(pod).namespace == namespace), self._store)
            addresses.write_hosts(self.hosts_file(namespace), text)

    def _placed(self, pod: Manifest) -> Manifest:
        """The pod on its node with its address, or NotYetError in the scheduler's words."""
        pods = self._store.select("v1", "Pod")
        pod = devices.assigned(pod, pods, len(node.gpu_memory_mib()))
        address = pod.get("status", {}).get("podIP")
        if address is None:
            living = (other for other in pods if not is_terminal(other))
            taken = [other["status"]["podIP"] for other in living if "podIP" in other.get("status", {})]
            address = addresses.allocate(f"{self._state}/{pod['metadata']['uid']}", taken)
        status = {
            **pod.get("status", {}),
            "podIP": address,
            "podIPs": [{"ip": address}],
            "hostIP": "127.0.0.1",
        }
        return {**pod, "spec": {**pod["spec"], "nodeName": node.name()}, "status": status}

    def _write_container(self, pod: Manifest, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        container, namespace = pod["spec"]["containers"][0], pod["metadata"]["namespace"]
        message = directory / podstatus.TERMINATION_FILE
        message.touch()
        mounts = volumes.mounts(pod, directory, self._store)
        mounts.append(Mount(container.get("terminationMessagePath", podstatus.TERMINATION_PATH), message))

        def lookup(kind: str, name: str) -> dict[str, str]:
            found = volumes.content(kind, name, namespace, self._store)
            if found is None:
                raise NotYetError("CreateContainerConfigError", f'{kind.lower()} "{name}" not found')
            return {key: value.decode() for key, value in found.items()}

        base = {
            **self.machine,
            "HOSTNAME": pod["spec"].get("hostname", pod["metadata"]["name"]),
            ENV_HOSTS: str(self.hosts_file(namespace)),
            devices.VARIABLE: devices.visible(pod),
            ENV_CPUS: str(max(1, node.cpus() // self._siblings(pod))),
        }
        what = environment.command(pod, mounts, base, lookup, environment.downward_fields(pod))
        work = directory / "work"
        work.mkdir(exist_ok=True)
        grace = pod["spec"].get("terminationGracePeriodSeconds", GRACE_SECONDS)
        value = {"argv": what.argv, "env": what.env, "cwd": what.cwd or str(work), "graceSeconds": grace}
        path = directory / supervise.CONTAINER_FILE
        with open(
            os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w"
        ) as file:  # secrets are in env
            json.dump(value, file, indent=1)

    def _siblings(self, pod: Manifest) -> int:
        """Pods of its Job that share this machine's cores with it, itself included."""
        for ref in owner_refs(pod):
            owner = self._store.get(ref)
            if owner is not None and ref.kind == "Job":
                parallelism: int = owner["spec"]["parallelism"]
                return max(1, parallelism)
        return 1

    def _remove(self, pod: Manifest, directory: Path) -> None:
        self._processes.end(directory)
        ref: Ref = ref_of(pod)
        self._store.remove(ref)
        shutil.rmtree(directory, ignore_errors=True)
