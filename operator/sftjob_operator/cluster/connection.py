"""Where the API server is and how to sign on: the pod's service account, or the kubeconfig.

In a pod this reads three files and imports nothing. The `kubernetes` client is loaded only for a kubeconfig,
whose exec plugins and providers it knows.
"""

from __future__ import annotations

import asyncio
import os
import ssl
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
TOKEN_SECONDS = 60.0  # a projected token is replaced well before it expires; reading it this often is enough

TokenSource = Callable[[], Awaitable[str | None]]


class NoCluster(ValueError):
    """Neither a service account nor a usable kubeconfig; the message says what was looked for."""


@dataclass(frozen=True)
class Connection:
    """An API server. Paths are files in PEM; `token` is asked before each request and caches by itself."""

    server: str
    token: TokenSource
    ca_path: str | None = None
    certificate_path: str | None = None
    key_path: str | None = None
    verify: bool = True
    tls_server_name: str | None = None
    proxy: str | None = None
    in_cluster: bool = False
    context: str = ""
    """Of the kubeconfig."""
    namespace: str = "default"
    """Where commands work that name none: the context's, or the pod's own."""

    def ssl_context(self) -> ssl.SSLContext | bool:
        """For aiohttp; True (the default) for plain http."""
        if not self.server.startswith("https"):
            return True
        context = ssl.create_default_context(cafile=self.ca_path)
        if not self.verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        if self.certificate_path:
            context.load_cert_chain(self.certificate_path, self.key_path)
        return context


def static_token(token: str | None) -> TokenSource:
    """A token that never changes."""

    async def source() -> str | None:
        return token

    return source


def file_token(path: Path, clock: Callable[[], float] = time.monotonic) -> TokenSource:
    """A token in a file that kubelet rotates."""
    read_at, token = -TOKEN_SECONDS, ""

    async def source() -> str | None:
        nonlocal read_at, token
        if clock() - read_at >= TOKEN_SECONDS:
            token, read_at = (await asyncio.to_thread(path.read_text)).strip(), clock()
        return token

    return source


async def connect(kubeconfig: str | None = None, context: str | None = None) -> Connection:
    """`kubeconfig`, else KUBECONFIG, else the pod's service account, else ~/.kube/config; NoCluster for none."""
    stated = kubeconfig or os.environ.get("KUBECONFIG")
    path = stated or str(Path.home() / ".kube" / "config")
    if stated or context or (not SERVICE_ACCOUNT.is_dir() and Path(path).is_file()):
        return await _from_kubeconfig(path, context)
    if not SERVICE_ACCOUNT.is_dir():
        raise NoCluster(
            f"no cluster: KUBECONFIG is not set, {path} does not exist, and this is not a pod with a "
            "service account"
        )
    host, port = os.environ["KUBERNETES_SERVICE_HOST"], os.environ["KUBERNETES_SERVICE_PORT"]
    return Connection(
        server=f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}",
        token=file_token(SERVICE_ACCOUNT / "token"),
        ca_path=str(SERVICE_ACCOUNT / "ca.crt"),
        in_cluster=True,
        namespace=_own_namespace(),
    )


def _own_namespace() -> str:
    try:
        return (SERVICE_ACCOUNT / "namespace").read_text().strip() or "default"
    except OSError:
        return "default"


async def _from_kubeconfig(path: str, context: str | None) -> Connection:
    from kubernetes.aio import config
    from kubernetes.aio.client import Configuration
    from yaml import YAMLError

    if not any(Path(part).expanduser().is_file() for part in path.split(os.pathsep)):
        raise NoCluster(f"kubeconfig {path}: no such file")
    configuration = Configuration()
    try:
        loader = await config.load_kube_config(
            config_file=path, context=context, client_configuration=configuration
        )
    except (
        config.ConfigException,
        OSError,
        LookupError,
        TypeError,
        ValueError,
        AttributeError,
        YAMLError,
    ) as error:
        chosen = f"context {context}: " if context else ""
        raise NoCluster(f"kubeconfig {path}: {chosen}{error}") from error
    current = loader.current_context

    async def token() -> str | None:
        if getattr(loader, "exec_plugin_expiry", None) is not None:  # a no-op until it has expired
            await loader.load_from_exec_plugin()
            configuration.api_key["BearerToken"] = loader.token
        header = await configuration.get_api_key_with_prefix("BearerToken")
        return header.partition(" ")[2] or header if header else None

    return Connection(
        server=configuration.host.rstrip("/"),
        token=token,
        ca_path=configuration.ssl_ca_cert,
        certificate_path=configuration.cert_file,
        key_path=configuration.key_file,
        verify=configuration.verify_ssl,
        tls_server_name=configuration.tls_server_name,
        proxy=configuration.proxy,
        context=str(current.get("name", "")),
        namespace=str((current.get("context") or {}).get("namespace") or "default"),
    )
