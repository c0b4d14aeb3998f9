"""Volumes for tests: a shared workspace, and the test environment for pods of the thin image.

The environment is the machine's /usr, the repository with its virtual environment, and the Python
which that environment points to, each read-only at its own path. A closed home directory (mode 0700)
is no obstacle: the runtime makes the parents of a mount anew inside the container.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from devcluster import paths
from devcluster.processes import run

Manifest = dict[str, Any]


def volume(
    name: str, path: Path | str, namespace: str = "default", read_only: bool = False, storage: str = "10Gi"
) -> list[Manifest]:
    """A hostPath PersistentVolume and the claim bound to it: one directory, seen from both nodes.

    Also the way to a hostPath where the `restricted` Pod Security Standard forbids it in pods.
    """
    modes = ["ReadOnlyMany" if read_only else "ReadWriteMany"]
    capacity = {"storage": storage}
    persistent = {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": f"{namespace}-{name}"},
        "spec": {
            "accessModes": modes,
            "capacity": capacity,
            "claimRef": {"namespace": namespace, "name": name},
            "hostPath": {"path": str(Path(path).resolve()), "type": "Directory"},
            "persistentVolumeReclaimPolicy": "Retain",
            "storageClassName": "",
        },
    }
    claim = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "accessModes": modes,
            "resources": {"requests": capacity},
            "storageClassName": "",
            "volumeName": f"{namespace}-{name}",
        },
    }
    return [persistent, claim]


def workspace(path: Path | str) -> Path:
    """Make a directory that pods of any user may write: hostPath knows no fsGroup."""
    directory = Path(path).resolve()
    directory.mkdir(parents=True, exist_ok=True)
    directory.chmod(0o777)
    return directory


def share_mounts() -> None:
    """Before the nodes leave the machine's mount namespace, whose root is often a private mount."""
    paths.mounts().mkdir(parents=True, exist_ok=True)
    run("mount", "--bind", paths.mounts(), paths.mounts())
    run("mount", "--make-shared", paths.mounts())


@contextlib.contextmanager
def small(name: str, size: str) -> Iterator[Path]:
    """A file system of `size` (as tmpfs writes it: 300k), seen from both nodes."""
    directory = paths.mounts() / name
    directory.mkdir(exist_ok=True)
    run("mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", directory)
    try:
        yield directory
    finally:
        run("umount", "--lazy", directory)
        directory.rmdir()


def environment() -> dict[str, Path]:
    """The trees the test environment consists of, by the name of their volume."""
    trees = {"env-usr": Path("/usr"), "env-repository": paths.REPOSITORY}
    venv = paths.REPOSITORY / ".venv"
    wanted = [venv.resolve()]
    python = venv / "bin" / "python"
    if python.exists():
        # Both ends of the chain of links: uv's `python` points to a directory that is a link itself.
        first = Path(python.readlink()) if python.is_symlink() else python
        wanted += [python.resolve().parents[1], *([first.parents[1]] if first.is_absolute() else [])]
    for path in wanted:
        if not any(path.is_relative_to(tree) for tree in trees.values()):
            trees[f"env-python-{len(trees) - 1}"] = path
    return trees


def thin_volumes(claims: bool = False) -> tuple[list[Manifest], list[Manifest]]:
    """`volumes` and `volumeMounts` of a pod of the thin image; by claim where hostPath is forbidden."""
    volumes, mounts = [], []
    for name, path in environment().items():
        if claims:
            source: Manifest = {"persistentVolumeClaim": {"claimName": name, "readOnly": True}}
        else:
            source = {"hostPath": {"path": str(path), "type": "Directory"}}
        volumes.append({"name": name, **source})
        mounts.append({"name": name, "mountPath": str(path), "readOnly": True})
    return volumes, mounts


def thin_claims(namespace: str = "default") -> list[Manifest]:
    """What `thin_volumes(claims=True)` refers to: one volume and claim per tree, in that namespace."""
    manifests = []
    for name, path in environment().items():
        manifests += volume(name, path, namespace, read_only=True)
    return manifests
