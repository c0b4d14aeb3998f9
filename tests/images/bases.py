"""Base images from debootstrap, so that no registry of images is needed.

Two of them: the one that images are built on, and the one that they run on, which holds neither shell nor package
manager. So every test that runs an image shows that it needs none.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import buildah
import hostsettings

SUITE = "bookworm"
BASE = f"sftjob.local/base:{SUITE}"
BARE = f"sftjob.local/bare:{SUITE}"
# Nothing of this is read by a Python program, and every image carries it to every node.
SUPERFLUOUS = (
    "var/cache/apt",
    "var/lib/apt/lists",
    "usr/share/doc",
    "usr/share/man",
    "usr/share/locale",
    "var/log",
)
# What installs, and what starts other programs. The list of packages stays: scanners read it.
INSTALLERS = (
    *("usr/bin/apt*", "usr/lib/apt", "usr/bin/dpkg*", "usr/lib/dpkg", "usr/bin/perl*", "usr/lib/*/perl*"),
    *("usr/share/python-wheels", "usr/lib/python3*/ensurepip", "usr/share/perl*"),
    *("usr/bin/sh", "usr/bin/bash", "usr/bin/dash", "usr/bin/rbash"),
)


def base() -> str:
    """A Debian with Python and venv in buildah's store; made once."""
    if buildah.has(BASE):
        return BASE
    root = buildah.cache() / f"base-{SUITE}"
    shutil.rmtree(root, ignore_errors=True)
    buildah.say(f"making a Debian {SUITE} with debootstrap: about two minutes, once")
    mirror = hostsettings.debian_mirror()
    packages = "--include=python3-venv,ca-certificates"
    words = ["--variant=minbase", packages, SUITE, str(root), *([mirror] if mirror else [])]
    buildah.run("debootstrap", *words, output=None)
    for name in SUPERFLUOUS:
        shutil.rmtree(root / name, ignore_errors=True)
        (root / name).mkdir(parents=True)
    with buildah.container("scratch") as made:
        buildah.buildah("add", "--quiet", made, str(root), "/")
        buildah.buildah("commit", "--quiet", "--format", "docker", made, BASE)
    shutil.rmtree(root)
    return BASE


def bare() -> str:
    """The same Debian without what could install or start anything else, in one layer."""
    if buildah.has(BARE):
        return BARE
    with buildah.container(base()) as made:
        root = Path(buildah.buildah("mount", made).strip())
        for pattern in INSTALLERS:
            for path in root.glob(pattern):
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        buildah.buildah("commit", "--quiet", "--squash", "--format", "docker", made, BARE)
    return BARE


def digest(tag: str) -> str:
    """Of an image's manifest."""
    return buildah.buildah("inspect", "--type", "image", "--format", "{{.FromImageDigest}}", tag).strip()
