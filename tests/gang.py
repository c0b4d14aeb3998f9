"""Real training ranks on this machine, without a launcher: for tests of the training itself.

Ranks are forked from a server process which has imported torch and DeepSpeed once: a gang is at work after
two seconds instead of thirty. They are processes like any other, and are really killed.
"""

from __future__ import annotations

import functools
import json
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Any, TextIO

import tiny
from sft_trainer.config import Outcome, TrainConfig
from sft_trainer.data.cache import Writer
from token_rows import Tokens, together

_DEADLINE_SECONDS = 300


@functools.cache
def _server() -> ForkServerContext:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ["DS_ACCELERATOR"] = "cpu"
    os.environ["HF_HUB_OFFLINE"] = "1"
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["sft_trainer.assemble", "deepspeed", "transformers.models.llama"])
    return context


def environment(rank: int, size: int, address: str) -> dict[str, str]:
    """What the launcher sets for a rank of a gang on one machine."""
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(size),
        "LOCAL_SIZE": str(size),
        "MASTER_ADDR": address,
        "MASTER_PORT": "29500",
        "OMP_NUM_THREADS": "1",
        "DS_ACCELERATOR": "cpu",
    }


def fresh_address() -> str:
    """A loopback address of its own for every gang, as nodes have."""
    return f"127.{random.randint(1, 250)}.{random.randint(1, 250)}.{random.randint(1, 250)}"


def _rank(
    work: Callable[..., int], arguments: tuple[Any, ...], variables: dict[str, str], output: str
) -> None:
    """A rank's whole life, in its own process."""
    with open(output, "w", buffering=1) as stream:
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
        sys.stdout = sys.stderr = stream
        os.environ.update(variables)
        os.environ.pop("PROMETHEUS_MULTIPROC_DIR", None)
        code = 1
        try:
            code = work(*arguments)
        except BaseException:
            traceback.print_exc()
        stream.flush()
        os._exit(code)


@dataclass
class Ranks:
    """A gang at work. Rank 0's output comes through a pipe and can be waited for, the others' is in files."""

    processes: list[ForkServerProcess]
    first: TextIO
    files: list[Path]
    seen: list[str] = field(default_factory=list)

    def end(self) -> list[tuple[int, str]]:
        """Exit code and output of every rank, once all have ended."""
        self.seen.extend(self.first)
        for process in self.processes:
            process.join(_DEADLINE_SECONDS)
        texts = ["".join(self.seen), *(path.read_text() for path in self.files)]
        return [
            (p.exitcode if p.exitcode is not None else -1, t)
            for p, t in zip(self.processes, texts, strict=True)
        ]

    def until(self, line: str) -> None:
        """Read rank 0's output up to a line that contains `line`."""
        for text in self.first:
            self.seen.append(text)
            if line in text:
                return
        raise AssertionError(f"rank 0 ended without saying {line!r}:\n{''.join(self.seen)[-4000:]}")

    def until_there(self, found: Callable[[], bool]) -> None:
        """Watch for `found` without a pause: what tests look for is there for a moment only."""
        deadline = time.monotonic() + _DEADLINE_SECONDS
        while not found():
            assert time.monotonic() < deadline, "it did not happen"
            assert self.processes[0].is_alive(), "rank 0 ended first"

    def send(self, number: signal.Signals, ranks: list[int] | None = None) -> None:
        """Send a signal to `ranks`, by default to all."""
        for rank, process in enumerate(self.processes):
            if process.pid is not None and (ranks is None or rank in ranks):
                os.kill(process.pid, number)


@contextmanager
def started(
    work: Callable[..., int], arguments: tuple[Any, ...], size: int, more: Mapping[str, str]
) -> Iterator[Ranks]:
    """`work(*arguments)` in `size` ranks; whatever still runs at the end is killed, by its own id."""
    address = fresh_address()
    with tempfile.TemporaryDirectory() as folder:
        outputs = [Path(folder) / f"{rank}.log" for rank in range(size)]
        os.mkfifo(outputs[0])
        processes = [
            _server().Process(
                target=_rank,
                args=(work, arguments, {**environment(rank, size, address), **more}, str(outputs[rank])),
            )
            for rank in range(size)
        ]
        for process in processes:
            process.start()
        with open(outputs[0]) as first:
            try:
                yield Ranks(processes, first, outputs[1:])
            finally:
                for process in processes:
                    if process.is_alive():
                        process.kill()
                    process.join()


def call(work: Callable[..., Any], size: int, **arguments: Any) -> Any:
    """Run `work(world, **arguments)` in every rank of a gang; what it returned at rank 0, as JSON."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        with started(_call, (work, arguments, str(result)), size, {}) as ranks:
            ends = ranks.end()
        assert all(code == 0 for code, _ in ends), "\n".join(text[-4000:] for code, text in ends if code)
        return json.loads(result.read_text())


def _call(work: Callable[..., Any], arguments: dict[str, Any], result: str) -> int:
    from sft_trainer.distributed import connect, prepare_environment

    prepare_environment("cpu")
    world = connect("cpu")
    value = work(world, **arguments)
    if world.is_first:
        Path(result).write_text(json.dumps(value))
    world.barrier()
    return 0


def train() -> int:
    """One rank as `python -m sft_trainer train` is."""
    from sft_trainer.train import main

    return main()


# --------------------------------------------------------------------------- whole jobs


def token_rows(count: int, seed: int, *, longest: int = 60) -> list[Tokens]:
    """Rows of 5 to `longest` tokens whose second half is supervised; in every tenth nothing is."""
    numbers = random.Random(seed)
    rows = []
    for index in range(count):
        length = numbers.randint(5, longest)
        spans = () if index % 10 == 3 else ((length // 2, length),)
        rows.append(Tokens([numbers.randrange(256) for _ in range(length)], spans))
    return rows


def write_cache(folder: Path, train: list[Tokens], held_out: list[Tokens]) -> None:
    """A token cache made by hand."""
    folder.mkdir(parents=True)
    writer = Writer(folder)
    writer.add("train", together(train))
    writer.add("eval", together(held_out))
    writer.close()


@dataclass
class Job:
    """A workspace with a tiny model, a token cache and the configuration of one training."""

    volume: Path
    ranks: int = 2
    changes: dict[str, Any] = field(default_factory=dict)
    rank: Callable[[], int] = train

    def __post_init__(self) -> None:
        if not (self.volume / "models" / "tiny").exists():
            tiny.model(self.volume / "models" / "tiny", hidden=64)
        if not (self.volume / "cache").exists():
            write_cache(self.volume / "cache", token_rows(40, seed=1), token_rows(6, seed=2))

    def config(self, **changes: Any) -> dict[str, Any]:
        """train.json; `changes` are laid over it by dotted path (with __ for the dot)."""
        base: dict[str, Any] = {
            "job": {"namespace": "default", "name": "job", "uid": "uid-1"},
            "attempt": 1,
            "identity": "identity-1",
            "model": {"directory": "models/tiny"},
            "data": {"cache": "cache", "maxLength": 128, "packing": "BestFit"},
            "training": {
                "method": "Full",
                "maxSteps": 8,
                "globalBatchSize": 4,
                "microBatchSize": 1,
                "gradientAccumulationSteps": 2,
                "learningRate": 1e-3,
                "scheduler": {"type": "Cosine", "warmupSteps": 2, "minLearningRate": 0.0},
                "optimizer": {"type": "AdamW", "betas": [0.9, 0.98], "eps": 1e-6, "weightDecay": 0.01},
                "maxGradNorm": 1.0,
                "precision": "fp32",
                "seed": 7,
            },
            "deepspeed": {"zeroStage": 2, "activationCheckpointing": "None"},
            "topology": {"nodes": 1, "processesPerNode": self.ranks, "accelerator": "cpu"},
            "checkpoint": {"periodSteps": 3, "keepLast": 3, "onExisting": "Resume"},
            "evaluation": {"periodSteps": 4},
            "export": {"format": "Merged"},
        }
        for path, value in {**self.changes, **changes}.items():
            *parents, last = path.split("__")
            inner = base
            for name in parents:
                inner = inner[name]
            inner[last] = value
        return json.loads(TrainConfig.model_validate(base).to_json())

    @contextmanager
    def start(self, **changes: Any) -> Iterator[Run]:
        """The ranks of one run."""
        scratch = Path(tempfile.mkdtemp(prefix="run-", dir=self.volume.parent))
        (scratch / "config").mkdir(parents=True)
        (scratch / "config" / "train.json").write_text(json.dumps(self.config(**changes)))
        more = {
            "SFTJOB_WORKSPACE": str(self.volume),
            "SFTJOB_CONFIG": str(scratch / "config"),
            "SFTJOB_RUN": str(scratch),
        }
        with started(self.rank, (), self.ranks, more) as ranks:
            yield Run(ranks, scratch)

    def run(self, **changes: Any) -> Ended:
        """Run to the end."""
        with self.start(**changes) as run:
            return run.end()

    @property
    def folder(self) -> Path:
        return self.volume / "jobs" / "job"

    def curve(self, what: str = "loss") -> dict[int, float]:
        """Loss (or what else is asked for) of every step in metrics.jsonl."""
        lines = (self.folder / "report" / "metrics.jsonl").read_text().splitlines()
        return {x["step"]: x[what] for line in lines if what in (x := json.loads(line))}


@dataclass
class Ended:
    """How the ranks of a run ended."""

    codes: list[int]
    output: str
    outcomes: list[Outcome | None]


@dataclass
class Run:
    """One run of a job."""

    ranks: Ranks
    scratch: Path

    def end(self) -> Ended:
        """Wait for all ranks."""
        ends = self.ranks.end()
        markers = [self.scratch / "ranks" / f"{rank}.json" for rank in range(len(ends))]
        outcomes = [Outcome.model_validate_json(m.read_text()) if m.exists() else None for m in markers]
        return Ended([code for code, _ in ends], "\n".join(text for _, text in ends), outcomes)
