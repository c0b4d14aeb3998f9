"""House rules that no linter knows."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def tracked(*patterns: str) -> list[Path]:
    listing = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", *patterns],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    return [ROOT / line for line in listing.stdout.splitlines() if (ROOT / line).is_file()]


@pytest.mark.parametrize("source_root", ["operator", "trainer"])
def test_a_source_root_is_no_package_because_it_would_shadow_the_standard_library(source_root):
    assert not list((ROOT / source_root).glob("*.py"))


def test_no_test_folder_is_a_package():
    assert not list((ROOT / "tests").rglob("__init__.py"))


def test_the_operator_imports_only_the_contract_of_the_trainer():
    offenders = []
    for file in (ROOT / "operator").rglob("*.py"):
        for line in file.read_text().splitlines():
            found = re.match(r"\s*(?:from|import)\s+sft_trainer(?:\.(\w+))?(?:\s+import\s+(\w+))?", line)
            if found and (found.group(1) or found.group(2)) != "config":
                offenders.append(f"{file.relative_to(ROOT)}: {line.strip()}")
    assert not offenders


def test_the_contract_can_be_read_without_torch():
    code = "import sys, sft_trainer.config; sys.exit(any(one in sys.modules for one in ('torch', 'numpy')))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_no_file_names_a_registry_host_or_a_path_of_one_machine():
    hosts = "|".join(
        (
            "pypi" + r"\.org",
            "pythonhosted" + r"\.org",
            "golang" + r"\.org/",
            "npmjs" + r"\.org",
            "debian" + r"\.org/debian",
        )
    )
    pattern = re.compile(rf"{hosts}|(?<![\w.])/(?:work|root)/")
    offenders = []
    for file in tracked():
        if file.suffix in (".sum", ".mod", ".png") or file == Path(__file__).resolve():
            continue
        offenders += [
            f"{file.relative_to(ROOT)}:{number}"
            for number, line in enumerate(file.read_text(errors="replace").splitlines(), 1)
            if pattern.search(line)
        ]
    assert not offenders


def test_every_relative_link_in_the_docs_leads_somewhere():
    broken = []
    for file in tracked("*.md"):
        targets = re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", file.read_text())
        broken += [f"{file.relative_to(ROOT)}: {one}" for one in targets if not (file.parent / one).exists()]
    assert not broken


def test_the_readme_names_only_make_targets_that_exist():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    named = set(re.findall(r"(?:`|\$ )make ([a-z][a-z-]+)", (ROOT / "README.md").read_text()))
    assert {"demo", "test"} <= named <= targets
