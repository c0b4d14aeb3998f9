"""`make bench-prepare`: rows per second of preparation, from the file to the finished cache, against the bare tokenizer.

The bare tokenizer gets the rendered texts in one call and nothing is done with what it returns. Both use all cores; they
take turns in one run, for the machine may not be quiet. One JSON line for each turn and one for the medians.
"""

from __future__ import annotations

import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "examples"))

import assets  # noqa: E402 - after the path to it
from sft_trainer.config import DataConfig  # noqa: E402
from sft_trainer.data import build  # noqa: E402
from sft_trainer.data.formats import conversation  # noqa: E402
from sft_trainer.data.ingest import Recipe  # noqa: E402
from sft_trainer.data.supervision import supervise  # noqa: E402
from sft_trainer.data.tokenizer import Tokenizer, chat_template  # noqa: E402

ROWS = 20_000
REPETITIONS = 3


def main() -> int:
    folder = assets.model_folder()
    tokenizer = Tokenizer(folder)
    template = chat_template(folder, tokenizer, None, folder)
    rows = [row(number) for number in range(ROWS)]
    texts = [supervise(conversation(one, "Messages", {}), template, "Assistant").text for one in rows]
    with tempfile.TemporaryDirectory() as name:
        workspace = Path(name)
        (workspace / "chats.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
        measured: dict[str, list[float]] = {"prepare": [], "tokenizer": []}
        for number in range(REPETITIONS):
            recipe = Recipe(settings(seed=number), tokenizer, template, 2**31 - 1)
            measured["prepare"].append(turn("prepare", lambda r=recipe: build.build(r, workspace)))
            measured["tokenizer"].append(turn("tokenizer", lambda: tokenizer.encode(texts)))
        facts = build.build(recipe, workspace)
    speeds = {key: round(ROWS / statistics.median(seconds)) for key, seconds in measured.items()}
    share = round(100 * speeds["prepare"] / speeds["tokenizer"])
    tokens = round(facts.tokens / facts.rows)
    print(json.dumps({"rows": ROWS, "tokens_per_row": tokens, "rows_per_second": speeds, "percent": share}))
    return 0


def turn(what: str, work: Callable[[], object]) -> float:
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    line = {"rows_per_second": round(ROWS / wall), "cpu_microseconds_per_row": round(cpu / ROWS * 1e6)}
    print(json.dumps({"figure": what, **line}), flush=True)
    return wall


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
