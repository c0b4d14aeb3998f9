"""etcd, API server, controller manager, scheduler and CoreDNS: five processes on the host.

Flags differ from a production cluster where a test would otherwise wait: rate limits, how soon a
silent node is called lost, and how long its pods are tolerated.
"""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from pathlib import Path

from devcluster import api, binaries, credentials, paths
from devcluster.processes import CommandError, is_alive, spawn, tail, wait_for

NAMES = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "coredns")
ETCD = "http://127.0.0.1:23790"
ETCD_PEERS = "http://127.0.0.1:23800"
NODE_LOST_SECONDS = 16
TOLERATION_SECONDS = 20

AUDIT_POLICY = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived"],
    "rules": [
        # The kubelets' heartbeats, one a second, would be most of the log.
        {
            "level": "None",
            "namespaces": ["kube-node-lease"],
            "resources": [{"group": "coordination.k8s.io", "resources": ["leases"]}],
        },
        {"level": "Metadata"},
    ],
}
DNS_ROLE = {
    "apiVersion": "rbac.authorization.k8s.io/v1",
    "kind": "ClusterRole",
    "metadata": {"name": "system:coredns"},
    "rules": [
        {"apiGroups": [""], "resources": ["services", "pods", "namespaces"], "verbs": ["list", "watch"]},
        {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["list", "watch"]},
    ],
}
DNS_BINDING = {
    "apiVersion": "rbac.authorization.k8s.io/v1",
    "kind": "ClusterRoleBinding",
    "metadata": {"name": "system:coredns"},
    "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "system:coredns"},
    "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "system:coredns"}],
}


def audit_log() -> Path:
    return paths.logs() / "audit.log"


def start_api() -> None:
    """Start etcd and the API server without waiting: the nodes are prepared meanwhile."""
    kube = binaries.kube()
    spawn("etcd", [
        kube, "etcd", "--name=sftjob", f"--data-dir={paths.state() / 'etcd'}", "--unsafe-no-fsync",
        f"--listen-client-urls={ETCD}", f"--advertise-client-urls={ETCD}",
        f"--listen-peer-urls={ETCD_PEERS}", f"--initial-advertise-peer-urls={ETCD_PEERS}",
        f"--initial-cluster=sftjob={ETCD_PEERS}", "--quota-backend-bytes=4294967296", "--log-level=warn",
    ])  # fmt: skip
    keys = paths.credentials()
    policy = paths.state() / "audit-policy.json"
    policy.write_text(json.dumps(AUDIT_POLICY))
    spawn("kube-apiserver", [
        kube, "kube-apiserver", f"--etcd-servers={ETCD}",
        f"--bind-address={paths.BRIDGE_ADDRESS}", f"--advertise-address={paths.BRIDGE_ADDRESS}",
        f"--secure-port={paths.API_PORT}", f"--service-cluster-ip-range={paths.SERVICE_NETWORK}",
        f"--tls-cert-file={keys / 'server.crt'}", f"--tls-private-key-file={keys / 'server.key'}",
        f"--client-ca-file={keys / 'ca.crt'}", f"--token-auth-file={keys / 'tokens.csv'}",
        f"--kubelet-client-certificate={keys / 'client.crt'}", f"--kubelet-client-key={keys / 'client.key'}",
        "--kubelet-preferred-address-types=InternalIP",
        f"--requestheader-client-ca-file={keys / 'ca.crt'}", "--requestheader-allowed-names=kube-apiserver",
        "--requestheader-username-headers=X-Remote-User", "--requestheader-group-headers=X-Remote-Group",
        "--requestheader-extra-headers-prefix=X-Remote-Extra-",
        f"--proxy-client-cert-file={keys / 'client.crt'}", f"--proxy-client-key-file={keys / 'client.key'}",
        "--service-account-issuer=https://kubernetes.default.svc.cluster.local",
        f"--service-account-signing-key-file={keys / 'accounts.key'}",
        f"--service-account-key-file={keys / 'accounts.key'}",
        "--authorization-mode=Node,RBAC", "--allow-privileged",
        # The second asks whoever makes children for a right on their owner's finalizers, as OpenShift does.
        "--enable-admission-plugins=NodeRestriction,OwnerReferencesPermissionEnforcement",
        # Webhooks are called at their endpoints: the host has no kube-proxy of its own.
        "--enable-aggregator-routing=true",
        f"--default-not-ready-toleration-seconds={TOLERATION_SECONDS}",
        f"--default-unreachable-toleration-seconds={TOLERATION_SECONDS}",
        f"--audit-policy-file={policy}", f"--audit-log-path={audit_log()}", "--audit-log-maxsize=200",
        "--audit-log-maxbackup=1",
    ])  # fmt: skip


def wait_for_api() -> None:
    dead: list[str] = []

    def settled() -> bool:
        dead[:] = [name for name in NAMES[:2] if not is_alive(name)]
        return bool(dead) or api.is_ready()

    answered = wait_for(settled, 60)
    if dead:
        raise CommandError(f"{dead[0]} ended; its log says:\n{tail(dead[0])}")
    if not answered:
        raise CommandError(f"the API server is not ready after 60 s; its log says:\n{tail('kube-apiserver')}")


def start_controllers() -> None:
    kube, keys = binaries.kube(), paths.credentials()
    controllers, scheduler = "kube-controller-manager", "kube-scheduler"
    spawn(controllers, [
        kube, controllers, *_client(controllers), "--use-service-account-credentials=true",
        f"--service-account-private-key-file={keys / 'accounts.key'}", f"--root-ca-file={keys / 'ca.crt'}",
        f"--cluster-signing-cert-file={keys / 'ca.crt'}", f"--cluster-signing-key-file={keys / 'ca.key'}",
        f"--node-monitor-grace-period={NODE_LOST_SECONDS}s", "--node-monitor-period=2s",
        "--kube-api-qps=100", "--kube-api-burst=200",
    ])  # fmt: skip
    spawn(scheduler, [kube, scheduler, *_client(scheduler), "--kube-api-qps=200", "--kube-api-burst=400"])


def start_dns() -> None:
    for path, body in (("clusterroles", DNS_ROLE), ("clusterrolebindings", DNS_BINDING)):
        status, answer = api.call("POST", f"/apis/rbac.authorization.k8s.io/v1/{path}", body)
        if status not in (201, 409):
            raise CommandError(f"creating CoreDNS' role: {status} {answer}")
    corefile = paths.state() / "Corefile"
    corefile.write_text(
        f"""cluster.local:53 in-addr.arpa:53 ip6.arpa:53 {{
    bind {paths.BRIDGE_ADDRESS}
    errors
    ready {paths.BRIDGE_ADDRESS}:8181
    kubernetes {{
        kubeconfig {credentials.kubeconfig_of("system:coredns")}
        pods insecure
        ttl 0
    }}
}}
"""
    )
    spawn("coredns", [binaries.coredns(), "-conf", corefile])


def is_dns_ready() -> bool:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"http://{paths.BRIDGE_ADDRESS}:8181/ready", timeout=2) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _client(component: str) -> list[str]:
    config = credentials.kubeconfig_of(f"system:{component}")
    # On the bridge's address, the ports are free whatever other cluster this machine runs.
    return [
        f"--kubeconfig={config}",
        f"--authentication-kubeconfig={config}",
        f"--authorization-kubeconfig={config}",
        f"--bind-address={paths.BRIDGE_ADDRESS}",
        "--leader-elect=false",
    ]
