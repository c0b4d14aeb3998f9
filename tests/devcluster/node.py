"""One node: a holder process that owns its namespaces, and in them containerd, kubelet and kube-proxy.

The private mount namespace binds the node's own directories over the paths that kubelet and containerd
have compiled in (device-plugin sockets, shim sockets), and its mounts end with its last process.
"""

from __future__ import annotations

import json
from typing import Any

from devcluster import binaries, cgroups, credentials, doctor, network, paths
from devcluster.processes import CommandError, is_alive, pid_of, run, spawn, stop, tail, wait_for

SOCKET = "/run/containerd/containerd.sock"
OWN_PATHS = ("/var/lib/kubelet", "/var/lib/cni", "/var/log/pods", "/var/log/containers", "/run/containerd")


def component(name: str, program: str) -> str:
    """The name under which a node's process is recorded and logged."""
    return f"{name}-{program}"


def start_runtime(node: paths.Node) -> None:
    """Everything up to a containerd that answers."""
    cgroups.create(node.cgroup)
    directory = paths.node_directory(node.name)
    directory.mkdir(parents=True, exist_ok=True)
    _hold_namespaces(node)
    _write_cni(node)
    config = directory / "containerd.toml"
    config.write_text(_containerd_config(node))
    spawn(component(node.name, "containerd"), [*inside(node), "containerd", "--config", config])
    socket = directory / "run-containerd" / "containerd.sock"
    # The socket appears before the CRI plugin serves; `ctr version` asks the server itself.
    if not wait_for(lambda: socket.exists() and bool(ctr(node, "version", check=False)), 30):
        raise CommandError(
            f"{node.name}: containerd does not answer:\n{tail(component(node.name, 'containerd'))}"
        )


def start_kubelet(node: paths.Node) -> None:
    config = paths.node_directory(node.name) / "kubelet.json"
    config.write_text(json.dumps(_kubelet_config(node), indent=1))
    spawn(component(node.name, "kubelet"), [
        *inside(node), binaries.kube(), "kubelet", f"--config={config}",
        f"--kubeconfig={credentials.kubeconfig_of(f'system:node:{node.name}')}",
        f"--hostname-override={node.name}", f"--node-ip={node.address}", "--root-dir=/var/lib/kubelet",
    ])  # fmt: skip


def start_proxy(node: paths.Node) -> None:
    spawn(component(node.name, "kube-proxy"), [
        *inside(node), binaries.kube(), "kube-proxy", "--proxy-mode=nftables",
        f"--kubeconfig={credentials.kubeconfig_of('system:kube-proxy')}",
        f"--hostname-override={node.name}", f"--cluster-cidr={paths.POD_NETWORK}", "--oom-score-adj=0",
        # Conntrack limits belong to the machine, not to a namespace, and cannot be written here.
        "--conntrack-max-per-core=0", "--conntrack-min=0",
        "--conntrack-tcp-timeout-established=0s", "--conntrack-tcp-timeout-close-wait=0s",
    ])  # fmt: skip


def stop_kubelet(node: paths.Node) -> None:
    """What a lost machine looks like to the cluster; its containers run on, as on a cut-off one."""
    stop(component(node.name, "kubelet"), grace_seconds=0)


def inside(node: paths.Node) -> list[str]:
    """The words that run a command with the node's mounts and network."""
    holder = pid_of(component(node.name, "holder"))
    if holder is None:
        raise CommandError(f"{node.name} is not running: `python tests/devcluster up` starts the cluster")
    return ["nsenter", "--target", str(holder), "--mount", "--net"]


def ctr(node: paths.Node, *words: str, check: bool = True) -> str:
    return run(*inside(node), "ctr", "--address", SOCKET, "--namespace", "k8s.io", *words, check=check)


def is_running(node: paths.Node) -> bool:
    return all(is_alive(component(node.name, part)) for part in ("holder", "containerd", "kube-proxy"))


def _hold_namespaces(node: paths.Node) -> None:
    directory = paths.node_directory(node.name)
    ready = directory / "namespaces-ready"
    ready.unlink(missing_ok=True)
    script = []
    for target in OWN_PATHS:
        own = directory / target.strip("/").removeprefix("var/").replace("/", "-")
        own.mkdir(parents=True, exist_ok=True)
        script += [f"mkdir -p {target}", f"mount --bind '{own}' {target}"]
    script += [f"touch '{ready}'", "exec sleep infinity"]
    holder = component(node.name, "holder")
    # "slave": what is mounted later below paths.mounts() is seen by the nodes, never the other way round.
    words = ["unshare", "--mount", "--propagation", "slave", "sh", "-ec", "\n".join(script)]
    spawn(holder, [*network.inside(node), *words])
    if not wait_for(ready.exists, 10, interval=0.02):
        raise CommandError(f"{node.name}: no namespaces:\n{tail(holder)}")


def _write_cni(node: paths.Node) -> None:
    directory = paths.node_directory(node.name) / "cni"
    directory.mkdir(exist_ok=True)
    # ptp, not bridge: every packet is routed, so Services work without the br_netfilter module.
    plugin = {
        "type": "ptp",
        "ipMasq": False,
        "ipam": {
            "type": "host-local",
            "ranges": [[{"subnet": node.pod_subnet}]],
            "routes": [{"dst": "0.0.0.0/0"}],
            "dataDir": "/var/lib/cni/networks",
        },
    }
    network_list = {"cniVersion": "0.4.0", "name": "sftjob", "plugins": [plugin]}
    (directory / "10-sftjob.conflist").write_text(json.dumps(network_list))


def _containerd_config(node: paths.Node) -> str:
    directory = paths.node_directory(node.name)
    # restrict_oom_score_adj: without CAP_SYS_RESOURCE every sandbox dies of "can't get final child's PID".
    return f"""version = 2
root = "{directory}/containerd"
state = "/run/containerd"
disabled_plugins = ["io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs"]
[grpc]
  address = "{SOCKET}"
[plugins."io.containerd.internal.v1.opt"]
  path = "{directory}/opt"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "sftjob.local/pause:dev"
  restrict_oom_score_adj = true
  netns_mounts_under_state_dir = true
  stream_server_address = "127.0.0.1"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "{_snapshotter()}"
    default_runtime_name = "runc"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        SystemdCgroup = false
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{doctor.cni_directory()}"
    conf_dir = "{directory}/cni"
"""


def _kubelet_config(node: paths.Node) -> dict[str, Any]:
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": node.address,
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": str(paths.credentials() / "ca.crt")},
        },
        "authorization": {"mode": "Webhook"},
        "containerRuntimeEndpoint": f"unix://{SOCKET}",
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": f"/{node.cgroup}",
        "clusterDNS": [paths.BRIDGE_ADDRESS],
        "clusterDomain": "cluster.local",
        "resolvConf": "",
        "failCgroupV1": False,
        "failSwapOn": False,
        "makeIPTablesUtilChains": False,
        "oomScoreAdj": 0,
        "volumePluginDir": "/var/lib/kubelet/volume-plugins",
        # A full developer's disk must not evict tests, nor throw their images away.
        "evictionHard": {
            "memory.available": "100Mi",
            "nodefs.available": "0%",
            "nodefs.inodesFree": "0%",
            "imagefs.available": "0%",
            "imagefs.inodesFree": "0%",
        },
        "imageGCHighThresholdPercent": 100,
        # A quarter of the lease is the renewal: a lost node shows about 20 s later.
        "nodeStatusUpdateFrequency": "4s",
        "nodeLeaseDurationSeconds": 8,
        "shutdownGracePeriod": "0s",
    }


def _snapshotter() -> str:
    """overlayfs cannot lie on an overlayfs, which is what a container's own root is."""
    kind = run("stat", "--file-system", "--format=%T", paths.cache()).strip()
    return "native" if kind == "overlayfs" else "overlayfs"
