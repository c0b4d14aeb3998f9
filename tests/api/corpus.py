"""Bad SFTJobs and what is said of each: one corpus for the API server, LocalCluster and the schema's tests.

A file of tests/api/bad is `# expect: WORDS` and one object that must be refused with these words. Where there
are two objects, the first is stored (with its status) and the second is the update to be refused.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

Manifest = dict[str, Any]
FOLDER = Path(__file__).resolve().parent / "bad"
MARK = "# expect: "


@dataclass(frozen=True)
class Case:
    """`stored` is what the API server already has, None for a create."""

    name: str
    message: str
    job: Manifest
    stored: Manifest | None = None

    def update(self) -> Manifest:
        """The object that an update validates: metadata and status as stored, spec as applied."""
        job = copy.deepcopy(self.job)
        if self.stored is not None and "status" in self.stored:
            job["status"] = copy.deepcopy(self.stored["status"])
        return job


def cases() -> list[Case]:
    """All of them, by name."""
    return [load(path) for path in sorted(FOLDER.glob("*.yaml"))]


def load(path: Path) -> Case:
    text = path.read_text()
    first, _, _ = text.partition("\n")
    if not first.startswith(MARK) or not first.removeprefix(MARK).strip():
        raise ValueError(f"{path.name}: the first line must be '{MARK}WORDS OF THE MESSAGE'")
    *stored, job = YAML(typ="safe", pure=True).load_all(text)
    return Case(path.stem, first.removeprefix(MARK).strip(), job, stored[0] if stored else None)
