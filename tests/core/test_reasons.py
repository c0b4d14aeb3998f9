"""Every reason that a condition can have is explained in docs/conditions.md, and nothing is explained in vain."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from sft_trainer.config import FailureClass

ROOT = Path(__file__).resolve().parents[2]
DOCUMENT = (ROOT / "docs" / "conditions.md").read_text()
# Call and position of the argument that is a reason.
CALLS = {
    "Say": 1,
    "not_running": 0,
    "Trouble": 0,
    "SpecError": 0,
    "UserError": 0,
    "RowError": 1,
    "disrupted": 1,
}
WORD = re.compile(r"[A-Z][A-Za-z0-9]+")


def reasons() -> Iterator[tuple[str, str]]:
    for package in ("operator/sftjob_operator", "trainer/sft_trainer"):
        for file in sorted((ROOT / package).rglob("*.py")):
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                    position = CALLS.get(node.func.id)
                    if position is not None and len(node.args) > position:
                        yield from words(node.args[position], file)


def words(node: ast.expr, file: Path) -> Iterator[tuple[str, str]]:
    if isinstance(node, ast.IfExp):
        yield from words(node.body, file)
        yield from words(node.orelse, file)
    elif isinstance(node, ast.Constant) and isinstance(node.value, str) and WORD.fullmatch(node.value):
        yield node.value, str(file.relative_to(ROOT))


def test_every_reason_is_explained():
    from sftjob_operator.policy.running import _STATES

    found = dict(reasons()) | {word: "running.py" for word, _ in _STATES.values()}
    found |= {str(cls): "config.py" for cls in FailureClass}
    assert len(found) > 60, "the search has gone blind"
    missing = {reason: file for reason, file in found.items() if f"`{reason}`" not in DOCUMENT}
    assert not missing


def test_nothing_is_explained_that_nobody_says():
    sources = "".join(
        file.read_text()
        for package in ("operator/sftjob_operator", "trainer/sft_trainer")
        for file in (ROOT / package).rglob("*.py")
    )
    explained = set(re.findall(r"^\|(?: \w+ \|| `\w+` \| \w+ \|)? `([A-Z][A-Za-z0-9]+)`", DOCUMENT, re.M))
    types = {"Accepted", "Prepared", "Planned", "Running", "Suspended", "Complete", "Failed"}
    assert len(explained) > 50, "the search has gone blind"
    assert not {reason for reason in explained - types if f'"{reason}"' not in sources}
