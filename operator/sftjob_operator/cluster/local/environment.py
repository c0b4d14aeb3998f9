"""From a container's manifest to a command line and an environment of this machine. Pure.

One declared mechanism takes the place of a mount namespace: a word of the command, or the value of a variable, which
is a mounted path or lies below one is replaced by the real path. The user's shell does not leak in: a container gets
what the machine itself needs (PASSED), what belongs to local pods, and what its manifest says.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from sftjob_operator.cluster.base import Manifest
from sftjob_operator.cluster.local.volumes import Mount

PASSED = frozenset(
    {"PATH", "HOME", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "LD_LIBRARY_PATH", "SSL_CERT_FILE", "SSL_CERT_DIR"}
    | {"HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy"}
)
PYTHONS = ("python", "python3")
_REFERENCE = re.compile(r"\$(?:\$|\(([A-Za-z_][A-Za-z0-9_.-]*)\))")

Lookup = Callable[[str, str], Mapping[str, str]]
"""(kind, name) of a ConfigMap or Secret to its keys; raises NotYetError where it is missing."""


@dataclass(frozen=True)
class Command:
    """What is executed."""

    argv: list[str]
    env: dict[str, str]
    cwd: str | None


def machine(environment: Mapping[str, str], source_roots: Sequence[str]) -> dict[str, str]:
    """What every local container sees of this machine; `source_roots` make our packages importable."""
    result = {key: value for key, value in environment.items() if key in PASSED}
    if source_roots:
        result["PYTHONPATH"] = ":".join(source_roots)
    # Ranks of all pods meet on the loopback, whatever this machine's name resolves to.
    loopback = "lo0" if sys.platform == "darwin" else "lo"
    return {**result, "GLOO_SOCKET_IFNAME": loopback, "NCCL_SOCKET_IFNAME": loopback}


def command(
    pod: Manifest, mounts: Sequence[Mount], base: Mapping[str, str], lookup: Lookup, fields: Mapping[str, str]
) -> Command:
    """The pod's container; `base` is what it gets beside its manifest, `fields` what the downward API knows."""
    container = pod["spec"]["containers"][0]
    given = _variables(container, lookup, fields)
    env = {**base, **{key: real_path(value, mounts) for key, value in given.items()}}
    temporary = real_path("/tmp", mounts)
    if temporary != "/tmp":
        env.setdefault("TMPDIR", temporary)
    words = [expand(word, given) for word in (*container.get("command", []), *container.get("args", []))]
    argv = [real_path(word, mounts) for word in words]
    if argv and argv[0] in PYTHONS:
        argv[0] = sys.executable
    directory = container.get("workingDir")
    return Command(argv, env, None if directory is None else real_path(directory, mounts))


def real_path(text: str, mounts: Sequence[Mount]) -> str:
    """`text` itself, unless it is a mounted path or lies below one; the innermost mount decides."""
    for mount in sorted(mounts, key=lambda one: -len(one.path)):
        if text == mount.path:
            return str(mount.real)
        if text.startswith(f"{mount.path}/"):
            return f"{mount.real}{text[len(mount.path) :]}"
    return text


def expand(text: str, variables: Mapping[str, str]) -> str:
    """Kubernetes' $(NAME): unknown names stay as they are, $$ is a dollar."""

    def value(found: re.Match[str]) -> str:
        name = found.group(1)
        return "$" if name is None else variables.get(name, found.group(0))

    return _REFERENCE.sub(value, text)


def _variables(container: Manifest, lookup: Lookup, fields: Mapping[str, str]) -> dict[str, str]:
    result: dict[str, str] = {}
    for source in container.get("envFrom", []):
        kind, reference = ("Secret", "secretRef") if "secretRef" in source else ("ConfigMap", "configMapRef")
        keys = lookup(kind, source[reference]["name"])
        result |= {source.get("prefix", "") + key: value for key, value in keys.items()}
    for variable in container.get("env", []):
        origin = variable.get("valueFrom")
        result[variable["name"]] = (
            expand(variable.get("value", ""), result)
            if origin is None
            else _value_from(origin, lookup, fields)
        )
    return result


def _value_from(origin: Manifest, lookup: Lookup, fields: Mapping[str, str]) -> str:
    if "fieldRef" in origin:
        return fields.get(origin["fieldRef"]["fieldPath"], "")
    for kind, reference in (("Secret", "secretKeyRef"), ("ConfigMap", "configMapKeyRef")):
        if reference in origin:
            return lookup(kind, origin[reference]["name"])[origin[reference]["key"]]
    return ""


def downward_fields(pod: Manifest) -> dict[str, str]:
    """Every field path of the downward API that a pod has."""
    metadata, status = pod["metadata"], pod.get("status", {})
    result = {f"metadata.{key}": metadata.get(key, "") for key in ("name", "namespace", "uid")}
    for what in ("labels", "annotations"):
        result |= {f"metadata.{what}['{key}']": value for key, value in metadata.get(what, {}).items()}
    result["spec.nodeName"] = pod["spec"].get("nodeName", "")
    result["spec.serviceAccountName"] = pod["spec"].get("serviceAccountName", "default")
    return {**result, **{f"status.{key}": status.get(key, "") for key in ("podIP", "hostIP")}}
