"""Python environments beside the project's own, for what cannot live with it: locked, in the cache, made once."""

from __future__ import annotations

import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import assets

ROOT = Path(__file__).resolve().parents[1]


def python(name: str) -> str:
    """The interpreter of the environment that requirements/`name`.txt locks, made where it is missing."""
    lock = ROOT / "requirements" / f"{name}.txt"
    place = assets.cache() / name / f"venv-{sha256(lock.read_bytes()).hexdigest()[:12]}"
    found = place / "bin" / "python"
    if not (place / ".installed").exists():
        uv = ROOT / ".venv" / "bin" / "uv"
        tool = str(uv) if uv.exists() else "uv"
        subprocess.run([tool, "venv", "-q", "--clear", "--python", sys.executable, str(place)], check=True)
        install = [tool, "pip", "install", "-q", "--python", str(found), "--require-hashes", "-r", str(lock)]
        subprocess.run(install, check=True)
        (place / ".installed").touch()
    return str(found)
