"""What is in a built image, and programs run in it as the strictest platform would run them."""

from __future__ import annotations

import contextlib
import json
import subprocess
import tarfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import buildah

_CHUNK = 1 << 20
# A file system of its own that nobody may write, with /tmp, /proc and /dev as in a pod; the image's environment.
_SCRIPT = """
set -e; root=$1; user=$2; workspace=$3; shift 3
mount --bind "$root" "$root"
mount --rbind /dev "$root/dev"; mount -t proc proc "$root/proc"; mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"
[ -z "$workspace" ] || mount --bind "$workspace" "$root/mnt"
mount -o remount,bind,ro "$root"
exec chroot --userspec="$user:0" "$root" "$@"
"""


def config(archive: Path) -> dict[str, Any]:
    """The configuration of the image in a docker archive: labels, user, entry point."""
    with tarfile.open(archive) as image:
        document: dict[str, Any] = json.loads(_read(image, str(_manifest(image)["Config"])))
    return document["config"]


def layers(archive: Path) -> list[tuple[int, list[str]]]:
    """Of each layer, the base first: its bytes as a registry compresses them, and the files in it."""
    found = []
    with tarfile.open(archive) as image:
        for name in _manifest(image)["Layers"]:
            stream = image.extractfile(name)
            assert stream is not None
            packed, size = zlib.compressobj(6, wbits=31), 0
            while chunk := stream.read(_CHUNK):
                size += len(packed.compress(chunk))
            stream.seek(0)
            with tarfile.open(fileobj=stream) as layer:
                names = [member.name for member in layer if not member.isdir()]
                found.append((size + len(packed.flush()), names))
    return found


@contextlib.contextmanager
def root(image: str) -> Iterator[Path]:
    """The root file system of an image in buildah's store."""
    with buildah.container(image) as name:
        yield Path(buildah.buildah("mount", name).strip())


def run(
    root: Path, *words: str, environment: Mapping[str, str], user: int, workspace: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """A program in `root`, which is read-only, as a number that no file belongs to; `workspace` is at /mnt."""
    unshared = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", _SCRIPT, "sh"]
    command = [*unshared, str(root), str(user), str(workspace or ""), *words]
    env = {**environment, "PATH": environment["PATH"] + ":/usr/sbin:/sbin"}
    return subprocess.run(command, capture_output=True, text=True, env=env, cwd="/")


def environment(image_config: Mapping[str, Any]) -> dict[str, str]:
    """The ENV of an image."""
    return dict(line.split("=", 1) for line in image_config["Env"])


def _manifest(image: tarfile.TarFile) -> dict[str, Any]:
    manifest: dict[str, Any] = json.loads(_read(image, "manifest.json"))[0]
    return manifest


def _read(image: tarfile.TarFile, name: str) -> bytes:
    stream = image.extractfile(name)
    assert stream is not None, f"the archive holds no {name}"
    return stream.read()
