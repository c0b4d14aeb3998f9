"""The operator image without docker: `python tests/images/build.py operator` prints the path of its archive.

buildah runs the Dockerfile on a base that debootstrap makes, so no registry is needed; everything is kept in
the cache of the tests, and the archive by a hash of what went in. The package index, its certificates and the
Debian mirror are this machine's own settings; they reach the build as secrets and stay out of the image.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import hostsettings

ROOT = Path(__file__).resolve().parents[2]
SUITE = "bookworm"
OPERATOR = "sftjob.local/operator:dev"
BASE_TAG = f"sftjob.local/base:{SUITE}"
PROGRAMS = {"buildah": "buildah", "debootstrap": "debootstrap"}
SOURCES = ("Dockerfile", ".dockerignore", "pyproject.toml", "README.md", "LICENSE", "operator", "trainer")
REQUIREMENTS = ("requirements/build.txt", "requirements/operator.txt")
# Nothing of this is read by a Python program, and every image carries it to every node.
SUPERFLUOUS = (
    "var/cache/apt",
    "var/lib/apt/lists",
    "usr/share/doc",
    "usr/share/man",
    "usr/share/locale",
    "var/log",
)
KEPT_ARCHIVES = 3
KEPT_STEPS = 200  # about 20 builds


class BuildError(RuntimeError):
    """The image could not be made; the message says what is missing or what a program said."""


def operator(version: str = "dev") -> Path:
    """A docker archive of the operator image, tagged `OPERATOR`; from the cache when nothing has changed."""
    _cache().mkdir(parents=True, exist_ok=True)
    with _locked(_cache() / "lock"):
        archive = _cache() / f"operator-{_digest(version)}.tar"
        if not archive.exists():
            _provide()
            _build("operator", OPERATOR, archive, {"VERSION": version})
            _prune()
            for old in sorted(_cache().glob("operator-*.tar"), key=lambda path: path.stat().st_mtime)[
                :-KEPT_ARCHIVES
            ]:
                old.unlink()
        return archive


def _build(target: str, tag: str, archive: Path, arguments: dict[str, str]) -> None:
    began = time.monotonic()
    arguments = {"PYTHON_IMAGE": _base(), **arguments}
    with tempfile.TemporaryDirectory() as scratch:
        words = [
            "bud",
            "--isolation",
            "chroot",
            "--layers",
            "--target",
            target,
            "--tag",
            tag,
            "--format",
            "docker",
        ]
        words += [f"--build-arg={name}={value}" for name, value in arguments.items()]
        words += [f"--secret=id={name},src={path}" for name, path in _secrets(Path(scratch)).items()]
        say(f"building the {target} image with buildah: a minute the first time")
        _buildah(*words, str(ROOT), output=None)
        unfinished = Path(scratch) / archive.name
        _buildah("push", "--quiet", tag, f"docker-archive:{unfinished}:{tag}")
        shutil.move(unfinished, archive)
    say(
        f"built {archive.name}, {archive.stat().st_size / 2**20:.0f} MiB, in {time.monotonic() - began:.0f} s"
    )


def _prune() -> None:
    """Every build leaves its steps behind, 70 MB each time; they make the next one quick, up to a point."""
    if len(_buildah("images", "--all", "--quiet").split()) > KEPT_STEPS:
        _buildah("rmi", "--prune", "--force", check=False)


def _base() -> str:
    """A Debian with Python in buildah's store; made once."""
    if _buildah("images", "--quiet", "--filter", f"reference={BASE_TAG}", check=False).strip():
        return BASE_TAG
    root = _cache() / f"base-{SUITE}"
    shutil.rmtree(root, ignore_errors=True)
    say(f"making a Debian {SUITE} with debootstrap: about two minutes, once")
    packages = "--include=python3-venv,ca-certificates"
    mirror = hostsettings.debian_mirror()
    _run(
        "debootstrap",
        "--variant=minbase",
        packages,
        SUITE,
        str(root),
        *([mirror] if mirror else []),
        output=None,
    )
    for name in SUPERFLUOUS:
        shutil.rmtree(root / name, ignore_errors=True)
        (root / name).mkdir(parents=True)
    container = _buildah("from", "scratch").strip()
    try:
        _buildah("add", "--quiet", container, str(root), "/")
        _buildah("commit", "--quiet", "--format", "docker", container, BASE_TAG)
    finally:
        _buildah("rm", container)
    shutil.rmtree(root)
    return BASE_TAG


def _secrets(scratch: Path) -> dict[str, Path]:
    """Files for the build's secret mounts."""
    index = scratch / "package-index"
    settings = sorted(hostsettings.package_index().items())
    index.write_text("".join(f"{name}={shlex.quote(value)}\n" for name, value in settings))
    bundle = hostsettings.certificates()
    return {"package-index": index} | ({"ca-certificates": bundle} if bundle else {})


def _provide() -> None:
    """Install what a fresh Debian machine lacks, saying so."""
    if os.geteuid() != 0:
        raise BuildError("building the image needs root (debootstrap, and buildah's chroot isolation)")
    missing = sorted({package for program, package in PROGRAMS.items() if _which(program) is None})
    if not missing:
        return
    if shutil.which("apt-get") is None:
        raise BuildError(f"missing: {', '.join(missing)}; install them (there is no apt-get here to do it)")
    for words in (["update", "-qq"], ["install", "-y", "-qq", "--no-install-recommends", *missing]):
        say(f"running: apt-get {' '.join(words)}")
        _run("apt-get", *words, environment={"DEBIAN_FRONTEND": "noninteractive"})


def _buildah(*words: str, check: bool = True, output: int | None = subprocess.PIPE) -> str:
    store = [
        f"--root={_cache() / 'storage'}",
        f"--runroot={_cache() / 'run'}",
        f"--storage-driver={_driver()}",
    ]
    return _run("buildah", *store, *words, check=check, output=output)


def _driver() -> str:
    """Overlay needs a file system that can carry one; vfs works everywhere and copies every layer."""
    chosen = _cache() / "storage-driver"
    if not chosen.exists():
        probe = [
            _which("buildah") or "buildah",
            f"--root={_cache() / 'storage'}",
            f"--runroot={_cache() / 'run'}",
        ]
        works = (
            subprocess.run([*probe, "--storage-driver=overlay", "info"], capture_output=True).returncode == 0
        )
        chosen.write_text("overlay" if works else "vfs")
    return chosen.read_text()


def _run(
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


def _digest(version: str) -> str:
    """Of everything that decides what is in the image."""
    digest = hashlib.sha256(f"{SUITE} {version}".encode())
    for name in (*SOURCES, *REQUIREMENTS):
        path = ROOT / name
        files = sorted(path.rglob("*.py")) if path.is_dir() else [path]
        for file in files:
            digest.update(f"{file.relative_to(ROOT)}\0".encode() + file.read_bytes())
    return digest.hexdigest()[:16]


def _which(program: str) -> str | None:
    return shutil.which(program, path=os.environ.get("PATH", "") + ":/usr/local/sbin:/usr/sbin:/sbin")


def _cache() -> Path:
    if explicit := os.environ.get("SFTJOB_CACHE"):
        return Path(explicit).expanduser().resolve() / "images"
    base = os.environ.get("XDG_CACHE_HOME")
    return ((Path(base) if base else Path.home() / ".cache") / "sftjob" / "images").expanduser().resolve()


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def say(text: str) -> None:
    """Progress goes to stderr: stdout is the archive's path."""
    sys.stderr.write(f"images: {text}\n")
    sys.stderr.flush()


def main() -> int:
    """Print the archive's path; 1 with one sentence when it cannot be made."""
    parser = argparse.ArgumentParser(prog="python tests/images/build.py", description=__doc__)
    parser.add_argument("image", choices=["operator"])
    parser.parse_args()
    try:
        sys.stdout.write(f"{operator()}\n")
    except BuildError as error:
        say(str(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
