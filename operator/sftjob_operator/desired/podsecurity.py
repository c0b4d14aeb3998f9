"""What a pod may ask of its node, by the levels of the Pod Security Standards: who may write an SFTJob may not thereby
do more on a node than the platform allows.

Kubernetes checks the pods too, in namespaces that enforce a level. The operator makes the pods with its own rights, so
it does not rely on that. Source: the Pod Security Standards of the Kubernetes documentation, for the fields that
podTemplate can reach.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from sftjob_operator.api.objects import Manifest
from sftjob_operator.settings import Level

_CAPABILITIES = {  # that may be added, by Baseline
    *("AUDIT_WRITE", "CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "MKNOD", "NET_BIND_SERVICE"),
    *("SETFCAP", "SETGID", "SETPCAP", "SETUID", "SYS_CHROOT"),
}
_SYSCTLS = {
    *("kernel.shm_rmid_forced", "net.ipv4.ip_local_port_range", "net.ipv4.ip_unprivileged_port_start"),
    *("net.ipv4.tcp_syncookies", "net.ipv4.ping_group_range", "net.ipv4.ip_local_reserved_ports"),
    *("net.ipv4.tcp_keepalive_time", "net.ipv4.tcp_fin_timeout", "net.ipv4.tcp_keepalive_intvl"),
    *("net.ipv4.tcp_keepalive_probes", "net.ipv4.tcp_rmem", "net.ipv4.tcp_wmem"),
}
_APPARMOR = "container.apparmor.security.beta.kubernetes.io/"
_SELINUX_TYPES = {None, "", "container_t", "container_init_t", "container_kvm_t", "container_engine_t"}
_VOLUMES = {  # by Restricted
    *(
        "configMap",
        "csi",
        "downwardAPI",
        "emptyDir",
        "ephemeral",
        "persistentVolumeClaim",
        "projected",
        "secret",
    ),
}


def violation(pod: Manifest, level: Level) -> str | None:
    """The first thing in a PodSpec that this level does not allow: its path and value; None = nothing."""
    if level == "Privileged":
        return None
    return next(_violations(pod, level), None)


def _violations(pod: Manifest, level: Level) -> Iterator[str]:
    for index, volume in enumerate(pod.get("volumes") or ()):
        yield from _of_volume(f"volumes[{index}]", volume, level)
    whole = pod.get("securityContext") or {}
    yield from _of_context("securityContext", whole, level)
    for sysctl in whole.get("sysctls") or ():
        if sysctl.get("name") not in _SYSCTLS:
            yield f"securityContext.sysctls: {sysctl.get('name')}"
    for container in pod.get("containers") or ():
        own = container.get("securityContext") or {}
        path = "containers[0].securityContext"
        yield from _of_context(path, own, level)
        yield from _of_container(path, own, level)
        if level == "Restricted" and not own.get("runAsNonRoot", whole.get("runAsNonRoot")):
            yield f"{path}.runAsNonRoot is not true"
        profile = own.get("seccompProfile") or whole.get("seccompProfile") or {}
        if level == "Restricted" and profile.get("type") not in ("RuntimeDefault", "Localhost"):
            yield f"{path}.seccompProfile.type is not set"


def annotation_violation(annotations: Mapping[str, str], level: Level) -> str | None:
    """The same of a pod's annotations, one of which the API server takes for a field; None = nothing."""
    for name, value in annotations.items():
        confined = value == "runtime/default" or value.startswith("localhost/")
        if level != "Privileged" and name.startswith(_APPARMOR) and not confined:
            return f"metadata.annotations.{name}: {value}"
    return None


def _of_volume(path: str, volume: Mapping[str, Any], level: Level) -> Iterator[str]:
    kinds = set(volume) - {"name"}
    if "hostPath" in kinds:
        yield f"{path}.hostPath"
    for source in (volume.get("projected") or {}).get("sources") or ():
        if "serviceAccountToken" in source:  # beyond the standards: our pods have no token, by any way
            yield f"{path}.projected.sources.serviceAccountToken"
    if level == "Restricted" and kinds - _VOLUMES:
        yield f"{path}.{min(kinds - _VOLUMES)}"


def _of_context(path: str, context: Mapping[str, Any], level: Level) -> Iterator[str]:
    """What stands in the security context of a pod and of a container alike."""
    for profile in ("seccompProfile", "appArmorProfile"):
        if (context.get(profile) or {}).get("type") == "Unconfined":
            yield f"{path}.{profile}.type: Unconfined"
    options = context.get("seLinuxOptions") or {}
    if options.get("type") not in _SELINUX_TYPES or options.get("user") or options.get("role"):
        yield f"{path}.seLinuxOptions"
    if (context.get("windowsOptions") or {}).get("hostProcess"):
        yield f"{path}.windowsOptions.hostProcess: true"
    if level == "Restricted":
        if context.get("runAsNonRoot") is False:
            yield f"{path}.runAsNonRoot: false"
        if context.get("runAsUser") == 0:
            yield f"{path}.runAsUser: 0"


def _of_container(path: str, context: Mapping[str, Any], level: Level) -> Iterator[str]:
    if context.get("privileged"):
        yield f"{path}.privileged: true"
    if context.get("procMount") not in (None, "Default"):
        yield f"{path}.procMount: {context['procMount']}"
    capabilities = context.get("capabilities") or {}
    allowed = {"NET_BIND_SERVICE"} if level == "Restricted" else _CAPABILITIES
    for name in capabilities.get("add") or ():
        if name not in allowed:
            yield f"{path}.capabilities.add: {name}"
    if level == "Restricted":
        if "ALL" not in (capabilities.get("drop") or ()):
            yield f"{path}.capabilities.drop is without ALL"
        if context.get("allowPrivilegeEscalation") is not False:
            yield f"{path}.allowPrivilegeEscalation is not false"
