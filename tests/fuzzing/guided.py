"""Coverage-guided fuzzing of the parsers with atheris: `python -m fuzzing.guided SECONDS [PARSER]`, a process each.

What makes a parser end otherwise than it should is printed with its bytes, and the exit code is 1. Nothing is kept.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

NAMES = (
    "hostfile", "rows", "json rows", "manifest", "trainer state", "termination message", "progress", "train config",
    "prepare config", "yaml", "events", "curves", "quantity", "time",
)  # fmt: skip
LONGEST = 4096


def guide(name: str, seconds: int) -> None:
    """Fuzz one parser; ends the process."""
    import atheris

    with atheris.instrument_imports(include=["sft_trainer", "sftjob_operator", "ruamel"]):
        from fuzzing.documents import DOCUMENTS
        from fuzzing.parsers import PARSERS

    def one(data: bytes) -> None:
        PARSERS[name](data)

    with tempfile.TemporaryDirectory() as corpus:
        Path(corpus, "document").write_bytes(DOCUMENTS[name])
        words = [
            f"-max_total_time={seconds}",
            f"-max_len={LONGEST}",
            f"-artifact_prefix={corpus}/",
            "-print_final_stats=1",
        ]
        atheris.Setup([sys.argv[0], *words, corpus], one)
        atheris.Fuzz()


def main(arguments: Sequence[str]) -> int:
    seconds, *names = arguments
    if names:
        guide(names[0], int(seconds))
    failed = False
    for name in NAMES:
        command = [sys.executable, "-m", "fuzzing.guided", seconds, name]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
        tried = next((line.split()[-1] for line in done.stderr.splitlines() if "executed_units" in line), "?")
        sys.stdout.write(f"{name}: {tried} inputs, {'ok' if done.returncode == 0 else 'FAILED'}\n")
        if done.returncode != 0:
            failed = True
            sys.stdout.write(f"{done.stdout[-2000:]}{done.stderr[-4000:]}\n")
        sys.stdout.flush()
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
