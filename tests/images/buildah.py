"""buildah, with a store of its own in the cache of the tests; installed where a Debian machine lacks it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

PROGRAMS = {"buildah": "buildah", "debootstrap": "debootstrap"}


class BuildError(RuntimeError):
    """The image could not be made; the message says what a program said."""


class Missing(BuildError):
    """This machine has not what it takes."""


def cache() -> Path:
    """Where everything is kept."""
    if explicit := os.environ.get("SFTJOB_CACHE"):
        return Path(explicit).expanduser().resolve() / "images"
    base = os.environ.get("XDG_CACHE_HOME")
    return ((Path(base) if base else Path.home() / ".cache") / "sftjob" / "images").expanduser().resolve()


@contextlib.contextmanager
def locked() -> Iterator[None]:
    """Alone in the cache."""
    cache().mkdir(parents=True, exist_ok=True)
    with (cache() / "lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def provide() -> None:
    """Install what a fresh Debian machine lacks, saying so."""
    if os.geteuid() != 0:
        raise Missing("building the image needs root (debootstrap, and buildah's chroot isolation)")
    missing = sorted({package for program, package in PROGRAMS.items() if _which(program) is None})
    if not missing:
        return
    if shutil.which("apt-get") is None:
        raise Missing(f"missing: {', '.join(missing)}; install them (there is no apt-get here to do it)")
    for words in (["update", "-qq"], ["install", "-y", "-qq", "--no-install-recommends", *missing]):
        say(f"running: apt-get {' '.join(words)}")
        run("apt-get", *words, environment={"DEBIAN_FRONTEND": "noninteractive"})


def buildah(*words: str, check: bool = True, output: int | None = subprocess.PIPE) -> str:
    """Standard output of one command."""
    return run("buildah", *_store(), f"--storage-driver={_driver()}", *words, check=check, output=output)


def has(tag: str) -> bool:
    """Whether the store holds an image of this name."""
    return bool(buildah("images", "--quiet", "--filter", f"reference={tag}", check=False).strip())


@contextlib.contextmanager
def container(image: str) -> Iterator[str]:
    """A working container of `image`, by its name; removed afterwards."""
    name = buildah("from", "--pull-never", image).strip()
    try:
        yield name
    finally:
        buildah("rm", name)


def _store() -> list[str]:
    return [f"--root={cache() / 'storage'}", f"--runroot={cache() / 'run'}"]


def _driver() -> str:
    """Overlay needs a file system that can carry one; vfs works everywhere and copies every layer."""
    chosen = cache() / "storage-driver"
    if not chosen.exists():
        probe = [_which("buildah") or "buildah", *_store(), "--storage-driver=overlay", "info"]
        works = subprocess.run(probe, capture_output=True).returncode == 0
        chosen.write_text("overlay" if works else "vfs")
    return chosen.read_text()


def run(
    program: str,
    *words: str,
    check: bool = True,
    output: int | None = subprocess.PIPE,
    environment: dict[str, str] | None = None,
) -> str:
    """Standard output of a program; with output=None it goes to our stderr as it comes."""
    command = [_which(program) or program, *words]
    env = {**os.environ, **(environment or {})}
    stream = sys.stderr if output is None else output
    errors = None if output is None else subprocess.PIPE
    done = subprocess.run(command, stdout=stream, stderr=errors, text=True, env=env, stdin=subprocess.DEVNULL)
    if check and done.returncode:
        raise BuildError(
            f"{program} {' '.join(words)}: exit {done.returncode}\n{(done.stderr or '')[-3000:]}"
        )
    return done.stdout or ""


def _which(program: str) -> str | None:
    return shutil.which(program, path=os.environ.get("PATH", "") + ":/usr/local/sbin:/usr/sbin:/sbin")


def say(text: str) -> None:
    """Progress goes to stderr: stdout is the archive's path."""
    sys.stderr.write(f"images: {text}\n")
    sys.stderr.flush()
