"""`make bench-prepare`: rows per second of preparation, from the file to the finished cache, against three others.

The bare tokenizer gets the rendered texts in one call and nothing is done with what it returns, with the places of the
tokens (what a mask is usually made of) and without them. `datasets.map` makes tokens and labels of the same file (see
map_rows.py), with the better of one and two processes. All use all cores and take turns in one run, for the machine may
not be quiet. One JSON line for each turn and one for the medians.
"""

from __future__ import annotations

import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "examples"))

from bench.trainer.contenders import trl_python  # noqa: E402

import assets  # noqa: E402 - after the path to it
from sft_trainer.config import DataConfig  # noqa: E402
from sft_trainer.data import build, cache  # noqa: E402
from sft_trainer.data.formats import conversation  # noqa: E402
from sft_trainer.data.ingest import Recipe  # noqa: E402
from sft_trainer.data.supervision import supervise  # noqa: E402
from sft_trainer.data.tokenizer import Tokenizer, chat_template  # noqa: E402

ROWS = 10_000
REPETITIONS = 3


def main() -> int:
    folder = assets.model_folder()
    tokenizer = Tokenizer(folder)
    template = chat_template(folder, tokenizer, None, folder)
    rows = [row(number) for number in range(ROWS)]
    texts = [supervise(conversation(one, "Messages", {}), template, "Assistant").text for one in rows]
    measured: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as name:
        workspace = Path(name)
        chats = workspace / "chats.jsonl"
        chats.write_text("".join(json.dumps(one) + "\n" for one in rows))
        for number in range(REPETITIONS):
            recipe = Recipe(settings(seed=number), tokenizer, template, 2**31 - 1)
            turn(measured, "prepare", lambda r=recipe: build.build(r, workspace))
            turn(measured, "tokenizer", lambda: tokenizer.encode(texts))
            turn(measured, "tokenizer-without-places", lambda: tokenizer.ids(texts))
            for processes in (1, 2):
                said = mapped(chats, folder, processes)
                measured.setdefault(f"datasets.map-{processes}", []).append(said["seconds"])
        facts = build.build(recipe, workspace)
        if said["digest"] != digest(cache.TokenCache(workspace / facts.cache).train):
            sys.exit("datasets.map made other tokens or labels: it is no comparison")
    speeds = {key: round(ROWS / statistics.median(seconds)) for key, seconds in measured.items()}
    print(
        json.dumps(
            {
                "rows": ROWS,
                "tokens_per_row": round(facts.tokens / facts.rows),
                "rows_per_second": speeds,
                "percent": {key: round(100 * speeds["prepare"] / speed) for key, speed in speeds.items()},
            }
        )
    )
    return 0


def turn(measured: dict[str, list[float]], what: str, work: Callable[[], object]) -> None:
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    report(what, wall, cpu)
    measured.setdefault(what, []).append(wall)


def mapped(chats: Path, folder: Path, processes: int) -> dict:
    """What `datasets.map` says of its work, in the environment of `make bench-trainer`."""
    command = [trl_python(), str(ROOT / "bench" / "map_rows.py"), str(chats), str(folder), str(processes)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    said = json.loads(done.stdout)
    report(f"datasets.map-{processes}", said["seconds"], said["cpu"])
    return said


def report(what: str, wall: float, cpu: float) -> None:
    line = {"rows_per_second": round(ROWS / wall), "cpu_microseconds_per_row": round(cpu / ROWS * 1e6)}
    print(json.dumps({"figure": what, **line}), flush=True)


def digest(split: cache.Split) -> str:
    """Of all ids, and of which of them carry loss."""
    found = sha256()
    for index in range(len(split)):
        ids, weights = split.row(index)
        found.update(ids.astype("<i4").tobytes() + (weights > 0).tobytes())
    return found.hexdigest()


def row(number: int) -> dict:
    """A question and an answer in words of this project's documentation, about 200 tokens."""
    chosen = random.Random(number)
    question, answer = chosen.choices(WORDS, k=35), chosen.choices(WORDS, k=70)
    turns = (("user", question), ("assistant", answer))
    return {"messages": [{"role": role, "content": " ".join(words)} for role, words in turns]}


WORDS = (ROOT / "docs" / "data.md").read_text().split()


def settings(seed: int) -> DataConfig:
    """Another length each time, so that no turn finds the cache of the one before."""
    source = {"name": "0", "path": "chats.jsonl"}
    fixed = {"packing": "BestFit", "lossOn": "Assistant", "onTooLong": "Truncate", "onInvalidRow": "Fail"}
    return DataConfig.model_validate({"train": [source], "maxLength": 2048 + seed, **fixed})


if __name__ == "__main__":
    sys.exit(main())
