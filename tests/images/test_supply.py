"""What the images are made of: the bill of materials, the audit, and that the operator's packages exist for arm64."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


def packages(image: str) -> dict[str, set[str]]:
    """Name and version of every entry of a lock file, and its hashes."""
    found: dict[str, set[str]] = {}
    for line in (ROOT / "requirements" / f"{image}.txt").read_text().splitlines():
        if match := re.match(r"([a-z0-9._-]+==[^\s;]+)", line):
            current = found.setdefault(match[1], set())
        elif match := re.search(r"sha256:(\w+)", line):
            current.add(match[1])
    return found


@pytest.mark.slow
def test_the_bill_of_materials_holds_every_locked_package_with_its_hashes_and_its_licence(tmp_path: Path):
    done = subprocess.run(
        ["make", "-s", "sbom", f"ARGS=--to {tmp_path}"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    for image in ("operator", "trainer"):
        document = json.loads((tmp_path / f"sbom-{image}.json").read_text())
        assert (document["bomFormat"], document["specVersion"]) == ("CycloneDX", "1.6")
        found = {
            f"{one['name']}=={one['version']}": {each["content"] for each in one["hashes"]}
            for one in document["components"]
        }
        assert found == packages(image)
        without = [one["name"] for one in document["components"] if not one.get("licenses")]
        assert len(without) <= 5, without  # those that are not for this machine, and one that states none
        assert "torch" not in without
        assert "kopf" not in without


@pytest.fixture(scope="module")
def audit() -> ModuleType:
    spec = importlib.util.spec_from_file_location("audit", ROOT / "requirements" / "audit.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


FLAW = {"id": "CVE-2030-1", "fix_versions": ["2.0"]}
CLEAN: dict[str, Any] = {"name": "a", "version": "1.0", "vulns": []}
HURT: dict[str, Any] = {"name": "b", "version": "1.0", "vulns": [FLAW]}
UNASKED: dict[str, Any] = {"name": "c", "version": "1.0", "skip_reason": "Dependency not found"}


@pytest.mark.parametrize(
    ("answer", "code", "words"),
    [
        (json.dumps({"dependencies": [CLEAN]}), 0, "no vulnerability is known in 1 packages"),
        (json.dumps({"dependencies": [CLEAN, HURT]}), 1, "b 1.0: CVE-2030-1, mended in 2.0"),
        (json.dumps({"dependencies": [UNASKED, HURT]}), 1, "1 of 2 packages are unknown"),
        (json.dumps({"dependencies": [CLEAN, UNASKED]}), 2, "1 of 2 packages are unknown to the index"),
        ("", 2, "could not be asked: Failed to resolve"),
    ],
    ids=["clean", "flawed", "flawed-in-part", "unasked", "no-answer"],
)
def test_an_audit_that_could_not_ask_is_no_clean_bill(audit: ModuleType, answer: str, code: int, words: str):
    found, lines = audit.verdict("operator", answer, "Traceback\nFailed to resolve the host")
    assert found == code
    assert words in "\n".join(lines)


@pytest.mark.slow
def test_every_package_of_the_operator_has_a_wheel_for_arm64(tmp_path: Path):
    uv = shutil.which("uv") or str(ROOT / ".venv" / "bin" / "uv")
    words = [
        "pip",
        "install",
        "--dry-run",
        "--only-binary=:all:",
        "--python-platform=aarch64-unknown-linux-gnu",
    ]
    words += [
        "--python-version=3.11",
        "--require-hashes",
        f"--target={tmp_path}",
        "-r",
        "requirements/operator.txt",
    ]
    done = subprocess.run([uv, *words], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = set(re.findall(r"^ \+ (\S+==\S+)$", done.stderr, re.M))
    assert "yarl" in {name.partition("==")[0] for name in found}  # which is compiled
    assert found <= set(packages("operator"))
