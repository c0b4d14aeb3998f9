"""`make bench-metrics`: what metrics cost. One JSON line per figure.

Scrapes: a real launcher with eight ranks that write all their metrics ten times a second, as in a training of very short
steps. Training: a real one of two ranks in which every call of the metrics is timed on its own thread's CPU clock, so the
share is of one and the same run, and a busy machine distorts it little. With and without: another one in which two
steps in four are made without metrics, so that what changes with time changes both alike; tokens/s need a quiet machine.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

import tiny  # noqa: E402 - after the path to it
from gang import Job, token_rows, write_cache  # noqa: E402
from launching import Pod, train_config  # noqa: E402

RANKS, SCRAPES, STEPS, ALTERNATING_STEPS = 8, 30, 24, 103
WRITER = """
from sft_trainer.metrics import Metrics
metrics = Metrics(sftjob="bot", attempt=1, rank=rank)
metrics.started(
    total_steps=10**6, resumed_from_step=0, precision="bf16", version="0", attention="SDPA", peak_flops=1e15
)
metrics.start({phase: 1.0 for phase in ("imports", "rendezvous", "weights", "engine", "first step")})
metrics.evaluation(loss=1.0, seconds=1.0, perplexity=2.7)
phases = {phase: 0.1 for phase in ("data_wait", "rank_wait", "forward", "backward", "optimizer")}
step = 0
while True:
    step += 1
    metrics.step(step=step, loss=1.0, learning_rate=1e-4, gradient_norm=1.0, tokens=4096, supervised_tokens=2000,
                 padded_tokens=10, step_seconds=0.1, phase_seconds=phases, loss_scale=None, flops=1e12)
    metrics.checkpoint(step=step, seconds=1.0, size_bytes=10**9)
    if step == 3:
        print("writing", flush=True)
    time.sleep(0.1)
"""
TIMED_RANK = """
import json, os, time
from sft_trainer import train
from sft_trainer.metrics import Metrics
spent = {"calls": 0, "cpu": 0.0}
began = {}
def timed(method):
    def call(self, **words):
        start = time.thread_time()
        method(self, **words)
        spent["cpu"] += time.thread_time() - start
        spent["calls"] += 1
    return call
def step(self, **words):
    if words["step"] == 4:  # warm by then
        spent.update(calls=0, cpu=0.0)
        began["cpu"] = time.process_time()
    timed_step(self, **words)
    if words["step"] == STEPS:
        spent["whole"] = time.process_time() - began["cpu"]
for name in ("evaluation", "checkpoint", "skipped"):
    setattr(Metrics, name, timed(getattr(Metrics, name)))
timed_step = timed(Metrics.step)
Metrics.step = step
code = train.main()
with open(os.environ["SFTJOB_RUN"] + f"/spent-{os.environ['RANK']}.json", "w") as file:
    json.dump(spent, file)
raise SystemExit(code)
"""
ALTERNATING_RANK = """
import json, os, time
from sft_trainer import train
from sft_trainer.metrics import Metrics
found = {"with": [], "without": []}
last = None
count = Metrics.step
def step(self, **words):
    global last
    now = time.perf_counter()
    if last is not None and words["step"] > 4:  # warm by then
        found[last[1]].append(words["tokens"] / (now - last[0]))
    last = now, ("with", "without")[words["step"] // 2 % 2]  # evaluations and checkpoints, every tenth, fall to both
    if last[1] == "with":
        count(self, **words)
Metrics.step = step
code = train.main()
with open(os.environ["SFTJOB_RUN"] + f"/spent-{os.environ['RANK']}.json", "w") as file:
    json.dump(found, file)
raise SystemExit(code)
"""


def main() -> int:
    with tempfile.TemporaryDirectory() as name:
        report("scrape_of_8_ranks_milliseconds", scrapes(Path(name)))
    with tempfile.TemporaryDirectory() as name:
        report("share_of_cpu_percent", shares(Path(name)))
    with tempfile.TemporaryDirectory() as name:
        report("fewer_tokens_per_second_with_metrics_percent", differences(Path(name)))
    return 0


def scrapes(folder: Path) -> list[float]:
    """Milliseconds of each GET, the connection included."""
    pod = Pod(folder, processes=RANKS)
    found = []
    with pod.started(WRITER):
        port = int(pod.says(r"serving .* port (\d+)")[1])
        for _ in range(RANKS):
            pod.says("writing")
        for _ in range(SCRAPES):
            start = time.perf_counter()
            status, text = pod.get("/metrics", port)
            found.append(1000 * (time.perf_counter() - start))
            assert status == 200
            assert text.count("sft_trainer_loss{") == RANKS
            time.sleep(0.2)
    return found


def shares(folder: Path) -> list[float]:
    """Percent of a rank's CPU time that metrics took, by rank."""
    found = []
    for rank, spent in enumerate(trained(folder, TIMED_RANK.replace("STEPS", str(STEPS)), STEPS)):
        say(rank=rank, **spent, milliseconds_per_step=1000 * spent["cpu"] / (STEPS - 3))
        found.append(100 * spent["cpu"] / spent["whole"])
    return found


def differences(folder: Path) -> list[float]:
    """By how many percent the median step with metrics trains fewer tokens per second than the one without, by rank."""
    found = []
    for rank, speeds in enumerate(trained(folder, ALTERNATING_RANK, ALTERNATING_STEPS)):
        median = {how: statistics.median(values) for how, values in speeds.items()}
        say(rank=rank, steps={how: len(values) for how, values in speeds.items()}, tokens_per_second=median)
        found.append(100 * (1 - median["with"] / median["without"]))
    return found


def trained(folder: Path, rank: str, steps: int) -> list[dict[str, Any]]:
    """What each of two ranks that run this script has written down."""
    volume = folder / "workspace"
    tiny.model(volume / "models" / "tiny", hidden=512, layers=6)
    write_cache(volume / "cache", token_rows(400, seed=1, longest=250), token_rows(8, seed=2))
    job = Job(volume)
    pod = Pod(folder, processes=2)
    batch: dict[str, Any] = {"training__globalBatchSize": 8, "training__gradientAccumulationSteps": 4}
    config = job.config(
        **batch,
        training__maxSteps=steps,
        data__maxLength=512,
        evaluation__periodSteps=10,
        checkpoint__periodSteps=10,
    )
    config["topology"] = train_config(1, 2)["topology"]
    (pod.config / "train.json").write_text(json.dumps(config))
    script = folder / "rank.py"
    script.write_text(rank)
    command = f"command=[sys.executable, {str(script)!r}], port=0"
    driver = f"import sys; from sft_trainer.launch import launch; sys.exit(launch({command}))"
    environment = {**pod.environment, "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", driver], env=environment, check=True, stdout=sys.stderr)
    return [json.loads((pod.run / f"spent-{number}.json").read_text()) for number in range(2)]


def report(figure: str, values: list[float]) -> None:
    ordered = sorted(values)
    say(
        figure=figure,
        median=statistics.median(ordered),
        least=ordered[0],
        most=ordered[-1],
        cpus=os.cpu_count(),
    )


def say(**facts: Any) -> None:
    print(json.dumps(facts), flush=True)


if __name__ == "__main__":
    sys.exit(main())
