"""Container images made by hand, without a builder, and their way into both nodes.

The *thin* image is a root file system of symlinks: a pod mounts the machine's /usr, the Python and the
virtual environment over it (see volumes.py) and starts in a second, where the real image has 6 GB.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from devcluster import doctor, node, paths
from devcluster.processes import CommandError

THIN = "sftjob.local/thin:dev"
PAUSE = "sftjob.local/pause:dev"
# The id the product's own image runs as.
USER_ID = 65532

PASSWD = f"""root:x:0:0:root:/:/bin/sh
nobody:x:65534:65534:nobody:/nonexistent:/bin/false
sftjob:x:{USER_ID}:{USER_ID}:sftjob:/home/sftjob:/bin/sh
"""
GROUP = f"root:x:0:\nnogroup:x:65534:\nsftjob:x:{USER_ID}:\n"
DIRECTORIES = ("dev", "etc", "home", "proc", "root", "run", "sys", "tmp", "usr", "var", "var/tmp")
# The dynamic loader's index of the mounted /usr, and the names Debian links through /etc.
FROM_HOST = ("/etc/ld.so.cache", "/etc/alternatives", "/etc/mime.types", "/etc/services", "/etc/protocols")


def build() -> list[Path]:
    """Write the archives of both images; a second's work, so nothing is cached."""
    directory = paths.state() / "images"
    directory.mkdir(parents=True, exist_ok=True)
    pause = {"Cmd": ["/busybox", "sleep", "infinity"]}
    thin = {
        "Cmd": ["/bin/sh"],
        "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
        "User": f"{USER_ID}:{USER_ID}",
        "WorkingDir": "/",
    }
    return [
        _archive(directory / "pause.tar", PAUSE, pause, _fill_pause),
        _archive(directory / "thin.tar", THIN, thin, _fill_thin),
    ]


def load(archive: Path | str) -> list[str]:
    """Import an image archive (docker or OCI) into both nodes; what containerd said of each."""
    path = Path(archive).resolve()
    if not path.exists():
        raise CommandError(f"{archive}: no such file")

    def load_into(target: paths.Node) -> str:
        return f"{target.name}: {node.ctr(target, 'images', 'import', str(path)).strip()}"

    with ThreadPoolExecutor() as pool:
        return list(pool.map(load_into, paths.NODES))


def _fill_pause(layer: tarfile.TarFile) -> None:
    box = doctor.busybox()
    assert box is not None, "doctor.provide() has seen to it"
    layer.add(box.resolve(), "busybox", filter=_normalised)


def _fill_thin(layer: tarfile.TarFile) -> None:
    for name in DIRECTORIES:
        layer.addfile(_entry(name, tarfile.DIRTYPE, 0o1777 if name.endswith("tmp") else 0o755))
    home = _entry("home/sftjob", tarfile.DIRTYPE, 0o755)
    home.uid = home.gid = USER_ID
    layer.addfile(home)
    for name in ("bin", "sbin", "lib", "lib32", "lib64", "libx32"):
        if Path("/", name).is_symlink():
            link = _entry(name, tarfile.SYMTYPE, 0o777)
            link.linkname = f"usr/{name}"
            layer.addfile(link)
    for name, text in (("passwd", PASSWD), ("group", GROUP), ("nsswitch.conf", "hosts: files dns\n")):
        entry = _entry(f"etc/{name}", tarfile.REGTYPE, 0o644)
        entry.size = len(text)
        layer.addfile(entry, io.BytesIO(text.encode()))
    for source in FROM_HOST:
        if os.path.lexists(source):
            layer.add(source, source.lstrip("/"), filter=_normalised)


def _archive(
    path: Path, tag: str, config: Mapping[str, object], fill: Callable[[tarfile.TarFile], None]
) -> Path:
    """A docker archive: one layer, the image's config, and a manifest naming both."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as layer:
        fill(layer)
    packed = content.getvalue()
    digest = hashlib.sha256(packed).hexdigest()
    # Names of their own: containerd locks an import by the file names in it.
    layer_name, config_name = f"{digest}.tar", f"{digest}.json"
    description = {
        "architecture": "amd64",
        "os": "linux",
        "config": config,
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}"]},
    }
    manifest = [{"Config": config_name, "RepoTags": [tag], "Layers": [layer_name]}]
    with tarfile.open(path, "w") as archive:
        for name, data in (
            (layer_name, packed),
            (config_name, json.dumps(description).encode()),
            ("manifest.json", json.dumps(manifest).encode()),
        ):
            entry = _entry(name, tarfile.REGTYPE, 0o644)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return path


def _entry(name: str, kind: bytes, mode: int) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.type, entry.mode = kind, mode
    return entry


def _normalised(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    """The same bytes give the same image, whenever and by whomever it is made."""
    entry.uid = entry.gid = entry.mtime = 0
    entry.uname = entry.gname = ""
    return entry
