"""`make install` on a machine that lacks the right Python."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_a_python_that_is_too_new_is_named_with_those_that_would_do(tmp_path: Path):
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("cat", "sha256sum", "cut", "sh"):
        (programs / name).symlink_to(str(shutil.which(name)))
    python = programs / "python3"
    python.write_text('#!/bin/sh\n[ "$1" = --version ] && echo "Python 3.14.0" && exit\nexit 1\n')
    python.chmod(0o755)
    for name in ("requirements", "pyproject.toml"):
        (tmp_path / name).symlink_to(ROOT / name)
    done = subprocess.run(
        ["sh", "requirements/install.sh"],
        cwd=tmp_path, env={"PATH": str(programs)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 1
    assert "Python 3.11, 3.12 or 3.13 is needed, and here is Python 3.14.0: install one" in done.stderr
    assert not (tmp_path / ".venv").exists()
