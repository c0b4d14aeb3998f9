"""`make audit`: the lock files of both images against known vulnerabilities, by pip-audit.

Exit code 0: none is known. 1: some are, listed with the versions that mend them. 2: nobody could be asked, or not about
every package: that is no clean bill.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent
CLEAN, FOUND, UNKNOWN = 0, 1, 2


def verdict(image: str, answer: str, said: str) -> tuple[int, list[str]]:
    """Exit code and lines for a person, from what pip-audit wrote (JSON) and `said` beside it."""
    try:
        packages: list[dict[str, Any]] = json.loads(answer)["dependencies"]
    except (ValueError, KeyError):
        last = (said.strip().splitlines() or ["no answer"])[-1][:300]
        return UNKNOWN, [f"{image}: the vulnerability database could not be asked: {last}"]
    lines = [
        f"{image}: {one['name']} {one['version']}: {flaw['id']}, "
        f"mended in {', '.join(flaw['fix_versions']) or 'no version yet'}"
        for one in packages
        for flaw in one.get("vulns", ())
    ]
    unasked = [one["name"] for one in packages if "skip_reason" in one]
    if unasked:
        lines.append(
            f"{image}: {len(unasked)} of {len(packages)} packages are unknown to the index that was asked "
            f"({unasked[0]}, ...); ask one that knows vulnerabilities (PIP_INDEX_URL), or another database: "
            "make audit ARGS='-s osv'"
        )
    if not lines:
        return CLEAN, [f"{image}: no vulnerability is known in {len(packages)} packages"]
    return FOUND if len(lines) > bool(unasked) else UNKNOWN, lines


def main() -> int:
    """Ask about both images; arguments are handed on to pip-audit."""
    worst = CLEAN
    for image in ("operator", "trainer"):
        words = [
            "--disable-pip",
            "--require-hashes",
            "--progress-spinner=off",
            "--format=json",
            *sys.argv[1:],
        ]
        program = Path(sys.executable).with_name("pip-audit")
        command = [str(program), *words, "-r", str(ROOT / f"{image}.txt")]
        done = subprocess.run(command, capture_output=True, text=True)
        code, lines = verdict(image, done.stdout, done.stderr)
        sys.stdout.write("\n".join(lines) + "\n")
        worst = FOUND if FOUND in (worst, code) else max(worst, code)
    return worst


if __name__ == "__main__":
    sys.exit(main())
