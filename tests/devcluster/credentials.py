"""Keys, certificates, tokens and kubeconfigs of one cluster's life; made anew at every start.

Components identify themselves by static tokens, which needs no certificate per component: one CA, the
API server's certificate, and its client certificate for the kubelets (`kubectl logs` and `exec`).
"""

from __future__ import annotations

import json
import secrets
from pathlib import Path

from devcluster import paths
from devcluster.processes import run

OPENSSL = f"""
[req]
distinguished_name = name
[name]
[ca]
basicConstraints = critical, CA:true
keyUsage = critical, keyCertSign, cRLSign, digitalSignature
[server]
extendedKeyUsage = serverAuth
subjectAltName = IP:{paths.BRIDGE_ADDRESS}, IP:{paths.SERVICE_ADDRESS}, IP:127.0.0.1, DNS:localhost, \
DNS:kubernetes, DNS:kubernetes.default, DNS:kubernetes.default.svc, DNS:kubernetes.default.svc.cluster.local
[client]
extendedKeyUsage = clientAuth
"""

# user name -> group; kubelets are added per node.
USERS = {
    "admin": "system:masters",
    "system:kube-controller-manager": "",
    "system:kube-scheduler": "",
    "system:kube-proxy": "",
    "system:coredns": "",
}


def create() -> None:
    directory = paths.credentials()
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    (directory / "openssl.cnf").write_text(OPENSSL)
    config = directory / "openssl.cnf"
    new = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-config", config)
    ca, ca_key = directory / "ca.crt", directory / "ca.key"
    signing = ("-CA", ca, "-CAkey", ca_key, "-CAcreateserial", "-days", "3650", "-extfile", config)
    name = ("-subj", "/CN=sftjob-devcluster", "-extensions", "ca")
    run("openssl", "req", "-x509", *new, *name, "-days", "3650", "-keyout", ca_key, "-out", ca)
    for part, subject in (
        ("server", "/CN=kube-apiserver"),
        ("client", "/O=system:masters/CN=kube-apiserver"),
    ):
        request, key, certificate = (directory / f"{part}.{kind}" for kind in ("csr", "key", "crt"))
        run("openssl", "req", "-new", *new, "-subj", subject, "-keyout", key, "-out", request)
        run("openssl", "x509", "-req", "-in", request, *signing, "-extensions", part, "-out", certificate)
    run("openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", directory / "accounts.key")
    _tokens(ca)


def kubeconfig_of(user: str) -> Path:
    return paths.credentials() / f"{user.replace(':', '-')}.kubeconfig"


def admin() -> tuple[str, str]:
    """The administrator's token and the CA file, for clients too simple for a kubeconfig."""
    config = json.loads(paths.kubeconfig().read_text())
    return config["users"][0]["user"]["token"], str(paths.credentials() / "ca.crt")


def _tokens(ca: Path) -> None:
    users = USERS | {f"system:node:{node.name}": "system:nodes" for node in paths.NODES}
    lines = []
    for user, group in users.items():
        token = secrets.token_hex(16)
        lines.append(f'{token},{user},{user},"{group}"' if group else f"{token},{user},{user}")
        target = paths.kubeconfig() if user == "admin" else kubeconfig_of(user)
        _write_private(target, json.dumps(_kubeconfig(user, token, ca), indent=1))
    _write_private(paths.credentials() / "tokens.csv", "\n".join(lines) + "\n")


def _kubeconfig(user: str, token: str, ca: Path) -> dict[str, object]:
    """A kubeconfig as JSON, which is YAML; the CA as a path keeps it short and readable."""
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [
            {"name": "sftjob", "cluster": {"server": paths.API_URL, "certificate-authority": str(ca)}}
        ],
        "users": [{"name": user, "user": {"token": token}}],
        "contexts": [{"name": "sftjob", "context": {"cluster": "sftjob", "user": user}}],
        "current-context": "sftjob",
    }


def _write_private(path: Path, text: str) -> None:
    path.touch(mode=0o600, exist_ok=True)
    path.chmod(0o600)
    path.write_text(text)
