"""`make bench-trainer`: this trainer, TRL and a plain loop on the same work, alternating; see docs/benchmarks.md.

Raw figures go to .sftjob/bench/results/, one JSON file a run of this program; the table to the terminal.
"""

from __future__ import annotations

import argparse
import json
import platform
import shlex
import shutil
import statistics
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "examples"))

from bench.trainer import contenders, measure, rows  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402

import assets  # noqa: E402 - after the path to our neighbours
from sft_trainer import precision  # noqa: E402

BENCH = ROOT / ".sftjob" / "bench"
console = Console()


def main() -> int:
    asked = _arguments()
    data = rows.prepared(BENCH / "workspace", asked.max_length)
    console.print(
        f"{data.rows} rows, {data.tokens / data.rows:.0f} tokens a row, "
        f"{100 * data.supervised / data.tokens:.0f} % of them supervised; {asked.precision}"
    )
    work = contenders.Work(data, asked.steps, asked.precision)
    figures: list[measure.Figures] = []
    fallen: dict[str, str] = {}  # who ended early, and why
    for repetition in range(asked.repetitions):
        for name in [name for name in asked.contenders if name not in fallen]:
            folder = BENCH / "runs" / f"{name}-{repetition}"
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            contender = contenders.contender(name, work, folder)
            try:
                one = measure.run(contender, asked.steps, asked.warm_up, folder / "log")
            except measure.EndedEarlyError as error:
                fallen[name] = str(error)
                console.print(f"{error}; the others go on", style="red")
                continue
            figures.append(one)
            console.print(
                f"{name} {repetition + 1}/{asked.repetitions}: {one.tokens_per_second:.0f} tokens/s, "
                f"first step after {one.first_step_seconds:.0f} s"
            )
            shutil.rmtree(data.workspace / "jobs", ignore_errors=True)
    console.print(_table(figures, [name for name in asked.contenders if _ran(figures, name)]))
    for line in ratios(figures):
        console.print(line)
    results = BENCH / "results" / f"{time.strftime('%Y%m%dT%H%M%S')}.json"
    results.parent.mkdir(parents=True, exist_ok=True)
    results.write_text(json.dumps(_document(figures, fallen, data, asked), indent=1))
    console.print(f"raw figures: {results.relative_to(ROOT)}")
    return 1 if fallen else 0


def _ran(figures: list[measure.Figures], contender: str) -> bool:
    return any(one.contender == contender for one in figures)


def medians(figures: list[measure.Figures], contender: str) -> dict[str, float]:
    """The median of every figure over the repetitions."""
    own = [one.document() for one in figures if one.contender == contender]
    return {key: statistics.median(float(one[key]) for one in own) for key in own[0] if key != "contender"}


def ratios(figures: list[measure.Figures]) -> list[str]:
    """What is to be shown: against the better TRL setting, and against the floor."""
    speed = {name: medians(figures, name)["tokens_per_second"] for name in {f.contender for f in figures}}
    if "ours" not in speed:
        return []
    lines = []
    if trl := [value for name, value in speed.items() if name.startswith("trl")]:
        lines.append(f"{speed['ours'] / max(trl):.2f} x the better TRL setting")
    if "floor" in speed:
        lines.append(f"{100 * speed['ours'] / speed['floor']:.0f} % of the floor")
    return lines


def _table(figures: list[measure.Figures], names: list[str]) -> Table:
    table = Table(title="medians")
    for column in (
        "",
        "tokens/s",
        "supervised/s",
        "tokens/CPU-s",
        "tokens/step",
        "peak RSS a rank",
        "first step",
        "loss",
    ):
        table.add_column(column, justify="right" if column else "left")
    for name in names:
        one = medians(figures, name)
        table.add_row(
            name,
            f"{one['tokens_per_second']:.0f}",
            f"{one['supervised_per_second']:.0f}",
            f"{one['tokens_per_cpu_second']:.0f}",
            f"{one['tokens_per_step']:.0f}",
            f"{one['peak_bytes'] / 1e9:.1f} GB",
            f"{one['first_step_seconds']:.0f} s",
            f"{one['loss']:.3f}",
        )
    return table


def _document(
    figures: list[measure.Figures], fallen: dict[str, str], data: rows.Prepared, asked: argparse.Namespace
) -> dict:
    return {
        "command": shlex.join(["python", "-m", "bench.trainer", *sys.argv[1:]]),
        "commit": subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True
        ).stdout.strip(),
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "cpu": _cpu(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("torch", "deepspeed", "transformers")},
        "trl": _trl_version(asked.contenders),
        "rows": {"rows": data.rows, "tokens": data.tokens, "supervised": data.supervised},
        "precision": asked.precision,
        "max_length": asked.max_length,
        "warm_up": asked.warm_up,
        "runs": [one.document() for one in figures],
        "medians": {name: medians(figures, name) for name in asked.contenders if _ran(figures, name)},
        "ended_early": fallen,
    }


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else ():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


def _trl_version(names: list[str]) -> str | None:
    if not any(name.startswith("trl") for name in names):
        return None
    ask = "from importlib.metadata import version; print(version('trl'))"
    done = subprocess.run([contenders.trl_python(), "-c", ask], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.trainer")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--warm-up", type=int, default=1, help="steps at the start that do not count")
    parser.add_argument(
        "--max-length",
        type=int,
        default=2048,
        help="tokens of a pack, one a rank and step; 2048 needs 8 GB a rank, 512 less than half",
    )
    parser.add_argument(
        "--contenders",
        nargs="+",
        default=list(contenders.NAMES),
        choices=[*contenders.NAMES, *contenders.OTHERS],
        help="see docs/benchmarks.md",
    )
    parser.add_argument(
        "--precision", choices=["bf16", "fp32"], help="default: bf16 where this CPU computes in it by itself"
    )
    asked = parser.parse_args()
    if asked.precision is None:
        asked.precision = "bf16" if "bf16" in precision.native("cpu") else "fp32"
    if not 1 <= asked.warm_up < asked.steps:
        parser.error("--warm-up: at least 1, and fewer than --steps")
    return asked


if __name__ == "__main__":
    try:
        sys.exit(main())
    except assets.FetchError as error:
        sys.exit(f"error: {error}")
