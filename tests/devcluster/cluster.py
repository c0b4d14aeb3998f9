"""The whole cluster: up, down, status. Each is safe to repeat, and after any crash of another.

`down` needs no memory of what `up` did: processes are found by pid file and by mark, containers by
cgroup, everything else by its fixed name.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from devcluster import (
    api,
    binaries,
    cgroups,
    controlplane,
    credentials,
    doctor,
    images,
    network,
    node,
    paths,
    volumes,
)
from devcluster.processes import (
    CommandError,
    is_alive,
    kill_marked,
    pid_of,
    recorded,
    run,
    say,
    stop,
    tail,
    wait_for,
)

# The kubelet sets these for the whole machine; `down` puts back what was there.
SYSCTLS = (
    "vm/overcommit_memory", "vm/panic_on_oom", "kernel/panic", "kernel/panic_on_oops",
    "kernel/keys/root_maxkeys", "kernel/keys/root_maxbytes",
)  # fmt: skip


def up() -> Path:
    """A cluster that works, and the path of its kubeconfig."""
    if (given := given_cluster()) is not None:
        say(f"using the cluster of KUBECONFIG={given}")
        return given
    with _lock():
        if is_healthy():
            return paths.kubeconfig()
        began = time.monotonic()
        if _only_kubelets_are_missing():
            for one in paths.NODES:
                node.start_kubelet(one)
        else:
            doctor.provide()
            for build in (binaries.kube, binaries.coredns, binaries.tools):
                build()
            began = time.monotonic()
            _remove()
            _start()
        _wait_until_healthy()
        say(f"ready after {time.monotonic() - began:.1f} s; logs are in {paths.logs()}")
    return paths.kubeconfig()


def down() -> None:
    with _lock():
        _remove()


def is_healthy() -> bool:
    return (
        all(is_alive(name) for name in controlplane.NAMES)
        and all(node.is_running(one) and is_alive(node.component(one.name, "kubelet")) for one in paths.NODES)
        and api.is_ready()
        and api.ready_nodes() == {one.name for one in paths.NODES}
        and controlplane.is_dns_ready()
        and api.call("GET", "/api/v1/namespaces/default/serviceaccounts/default")[0] == 200
    )


def status() -> dict[str, str]:
    """Each part and how it is, in words."""
    parts = {name: _pid_text(name) for name in controlplane.NAMES}
    ready = api.ready_nodes() if api.is_ready() else set()
    for one in paths.NODES:
        for program in ("containerd", "kube-proxy", "kubelet"):
            parts[node.component(one.name, program)] = _pid_text(node.component(one.name, program))
        parts[one.name] = "Ready" if one.name in ready else "not ready"
    return parts


def node_start(name: str) -> None:
    node.start_kubelet(paths.node(name))


def node_stop(name: str) -> None:
    node.stop_kubelet(paths.node(name))


def given_cluster() -> Path | None:
    """The cluster the caller already has, if it answers and is not simply ours."""
    named = os.environ.get("KUBECONFIG", "")
    if not named or Path(named).resolve() == paths.kubeconfig():
        return None
    kubectl = shutil.which("kubectl") or binaries.kubectl()
    words = [kubectl, "get", "--raw", "/readyz", "--request-timeout=5s"]
    if subprocess.run(words, capture_output=True).returncode == 0:
        return Path(named)
    say(f"the cluster of KUBECONFIG={named} does not answer: making our own")
    return None


def _start() -> None:
    _save_sysctls()
    volumes.share_mounts()
    network.up()
    credentials.create()
    controlplane.start_api()
    with ThreadPoolExecutor() as pool:
        archives = pool.submit(images.build)
        for runtime in [pool.submit(node.start_runtime, one) for one in paths.NODES]:
            runtime.result()
        loaded = pool.submit(lambda: [images.load(archive) for archive in archives.result()])
        controlplane.wait_for_api()
        controlplane.start_controllers()
        for one in paths.NODES:
            node.start_kubelet(one)
            node.start_proxy(one)
        controlplane.start_dns()
        loaded.result()


def _wait_until_healthy() -> None:
    def settled() -> bool:
        # A finished process will not come back: no use in waiting for it.
        return any(not is_alive(name) for name in recorded()) or is_healthy()

    wait_for(settled, 90, interval=0.25)
    if dead := [name for name in recorded() if not is_alive(name)]:
        raise CommandError("\n".join(f"{name} ended; its log says:\n{tail(name)}" for name in dead))
    if not is_healthy():
        raise CommandError(f"not ready after 90 s: {status()}; logs are in {paths.logs()}")


def _only_kubelets_are_missing() -> bool:
    return (
        all(is_alive(name) for name in controlplane.NAMES)
        and all(node.is_running(one) for one in paths.NODES)
        and api.is_ready()
    )


def _remove() -> None:
    if os.geteuid() != 0:
        raise CommandError("only root can do this")
    # Kubelets first, that nothing is started again; the API server, which others talk to, last.
    order = sorted(recorded(), key=lambda name: ("kubelet" not in name, name in controlplane.NAMES))
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda name: stop(name, grace_seconds=1), order))
    for one in paths.NODES:
        cgroups.remove(one.cgroup)
    kill_marked()
    network.down()
    _restore_sysctls()
    _delete_state()


def _delete_state() -> None:
    """Forget everything but the lock and, until the next start, the logs."""
    state = paths.state()
    for line in reversed(Path("/proc/self/mounts").read_text().splitlines()):
        mounted = line.split()[1].encode().decode("unicode_escape")
        if Path(mounted).is_relative_to(state):
            run("umount", "--lazy", mounted)
    if not state.exists():
        return
    for entry in state.iterdir():
        if entry.name == "logs":
            older = state / "logs.old"
            shutil.rmtree(older, ignore_errors=True)
            entry.rename(older)
        elif entry.is_dir() and entry.name != "logs.old":
            shutil.rmtree(entry)
        elif entry.name not in ("lock", "logs.old"):
            entry.unlink()


def _save_sysctls() -> None:
    values = {
        name: Path("/proc/sys", name).read_text().strip()
        for name in SYSCTLS
        if Path("/proc/sys", name).exists()
    }
    (paths.state() / "sysctls.json").write_text(json.dumps(values))


def _restore_sysctls() -> None:
    with contextlib.suppress(FileNotFoundError, json.JSONDecodeError):
        for name, value in json.loads((paths.state() / "sysctls.json").read_text()).items():
            with contextlib.suppress(OSError):
                Path("/proc/sys", name).write_text(value)


def _pid_text(name: str) -> str:
    pid = pid_of(name)
    return f"pid {pid}" if pid else "not running"


@contextlib.contextmanager
def _lock() -> Iterator[None]:
    """One `up` or `down` at a time; the kernel lets go of it however its holder ends."""
    paths.state().mkdir(parents=True, exist_ok=True)
    with (paths.state() / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another up or down is at work: waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
