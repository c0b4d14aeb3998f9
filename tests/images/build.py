"""The images without docker: `python tests/images/build.py operator` prints the path of its archive.

buildah runs the Dockerfile on a base that debootstrap makes, so no registry is needed; everything is kept in
the cache of the tests, and the archive by a hash of what went in. The package index, its certificates and the
Debian mirror are this machine's own settings; they reach the build as secrets and stay out of the image.
"""

from __future__ import annotations

import argparse
import hashlib
import shlex
import shutil
import sys
import tempfile
import time
from pathlib import Path

import bases
import hostsettings
from buildah import BuildError, buildah, cache, locked, provide, run, say

ROOT = Path(__file__).resolve().parents[2]
OPERATOR = "sftjob.local/operator:dev"
TRAINER = "sftjob.local/trainer:dev"
SOURCES = ("Dockerfile", ".dockerignore", "pyproject.toml", "README.md", "LICENSE", "operator", "trainer")
REQUIREMENTS = ("requirements/build.txt", "requirements/operator.txt")
KEPT_ARCHIVES = 3
KEPT_STEPS = 200  # about 20 builds


def operator(version: str = "dev") -> Path:
    """A docker archive of the operator image, tagged `OPERATOR`; from the cache when nothing has changed."""
    with locked():
        archive = cache() / f"operator-{_digest(version)}.tar"
        if not archive.exists():
            provide()
            images = {"PYTHON_IMAGE": bases.base(), "OPERATOR_IMAGE": bases.bare()}
            _build("operator", OPERATOR, images | _labels(version, bases.bare()))
            _archive(OPERATOR, archive)
            _prune()
            for old in sorted(cache().glob("operator-*.tar"), key=lambda path: path.stat().st_mtime)[
                :-KEPT_ARCHIVES
            ]:
                old.unlink()
        return archive


def trainer(**arguments: str) -> str:
    """The name of the trainer image in buildah's store: 6 GB, so that no archive is made of it."""
    with locked():
        provide()
        images = {"PYTHON_IMAGE": bases.base(), "TRAINER_IMAGE": bases.base()}
        _build("trainer", TRAINER, images | _labels("dev", bases.base()) | arguments)
    return TRAINER


def _labels(version: str, base: str) -> dict[str, str]:
    """Build arguments that say where an image is from."""

    def git(*words: str) -> str:
        return run("git", "-C", str(ROOT), *words, check=False).strip()

    return {
        "VERSION": version,
        "REVISION": git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"),
        "CREATED": git("show", "-s", "--format=%cI"),
        "SOURCE": git("remote", "get-url", "origin") or ROOT.name,
        "BASE_DIGEST": bases.digest(base),
    }


def _build(target: str, tag: str, arguments: dict[str, str]) -> None:
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        words = [
            "bud",
            "--isolation=chroot",
            "--layers",
            "--pull-never",
            f"--target={target}",
            f"--tag={tag}",
        ]
        words += ["--format=docker", *(f"--build-arg={name}={value}" for name, value in arguments.items())]
        words += [f"--secret=id={name},src={path}" for name, path in _secrets(Path(scratch)).items()]
        say(f"building the {target} image with buildah: a minute the first time")
        buildah(*words, str(ROOT), output=None)
    say(f"built {tag} in {time.monotonic() - began:.0f} s")


def _archive(tag: str, archive: Path) -> None:
    with tempfile.TemporaryDirectory(dir=archive.parent) as scratch:
        unfinished = Path(scratch) / archive.name
        buildah("push", "--quiet", tag, f"docker-archive:{unfinished}:{tag}")
        shutil.move(unfinished, archive)
    say(f"wrote {archive.name}, {archive.stat().st_size / 2**20:.0f} MiB")


def _prune() -> None:
    """Every build leaves its steps behind, 70 MB each time; they make the next one quick, up to a point."""
    if len(buildah("images", "--all", "--quiet").split()) > KEPT_STEPS:
        buildah("rmi", "--prune", "--force", check=False)


def _secrets(scratch: Path) -> dict[str, Path]:
    """Files for the build's secret mounts."""
    index = scratch / "package-index"
    settings = sorted(hostsettings.package_index().items())
    index.write_text("".join(f"{name}={shlex.quote(value)}\n" for name, value in settings))
    bundle = hostsettings.certificates()
    return {"package-index": index} | ({"ca-certificates": bundle} if bundle else {})


def _digest(version: str) -> str:
    """Of everything that decides what is in the image, but the labels that name a revision."""
    digest = hashlib.sha256(f"{bases.SUITE} {bases.INSTALLERS} {version}".encode())
    for name in (*SOURCES, *REQUIREMENTS):
        path = ROOT / name
        files = sorted(path.rglob("*.py")) if path.is_dir() else [path]
        for file in files:
            digest.update(f"{file.relative_to(ROOT)}\0".encode() + file.read_bytes())
    return digest.hexdigest()[:16]


def main() -> int:
    """Print the archive's path, or the image's name; 1 with one sentence when it cannot be made."""
    parser = argparse.ArgumentParser(prog="python tests/images/build.py", description=__doc__)
    parser.add_argument("image", choices=["operator", "trainer"])
    try:
        sys.stdout.write(f"{operator() if parser.parse_args().image == 'operator' else trainer()}\n")
    except BuildError as error:
        say(str(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
