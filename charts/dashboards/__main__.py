"""`python -m dashboards [--check]`, in charts/: write the chart's dashboards, or name those that have drifted."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from grafana_foundation_sdk.cog.encoder import JSONEncoder

from dashboards.controller import controller
from dashboards.fleet import fleet
from dashboards.job import job

FOLDER = Path(__file__).resolve().parents[1] / "sftjob" / "files" / "dashboards"


def files() -> dict[str, str]:
    """File name -> JSON."""
    made = {"fleet.json": fleet(), "job.json": job(), "operator.json": controller()}
    return {
        name: JSONEncoder(sort_keys=True, indent=1).encode(one.build()) + "\n" for name, one in made.items()
    }


def main() -> int:
    """0; with --check 1 when a file has drifted."""
    parser = argparse.ArgumentParser(prog="python -m dashboards", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 and name what drifted")
    check = parser.parse_args().check
    wanted = files()
    there = {path.name: path.read_text() for path in FOLDER.glob("*.json")}
    stale = sorted(name for name in wanted.keys() | there.keys() if wanted.get(name) != there.get(name))
    for name in stale:
        if check:
            sys.stderr.write(
                f"{name} is not what charts/dashboards makes: run `make generate` and commit the result\n"
            )
        elif name in wanted:
            (FOLDER / name).write_text(wanted[name])
            sys.stderr.write(f"wrote {FOLDER / name}\n")
        else:
            (FOLDER / name).unlink()
    return 1 if stale and check else 0


if __name__ == "__main__":
    sys.exit(main())
