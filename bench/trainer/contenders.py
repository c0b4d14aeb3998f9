"""Who is compared, and with which settings: same model, rows, ranks, precision, optimizer and batch."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path
from typing import NamedTuple

from bench.trainer.measure import Contender, Step, json_step
from bench.trainer.rows import SEED, Prepared

import environments
from sft_trainer.config import Precision, TrainConfig
from sft_trainer.launcher.environment import KEEP_FREED_MEMORY

HERE = Path(__file__).resolve().parent
NAMES = ("ours", "trl", "trl-packing", "floor")
OTHERS = ("ours-lean", "trl-tuned", "trl-packing-tuned")
RANKS, MEAN_TOKENS, RATE = 2, 200, 1e-4  # unpacked batches get as many rows as make about a pack
_STEP = re.compile(r"step (\d+)/\d+ loss ([\d.]+)")


class Work(NamedTuple):
    """What all of them do."""

    data: Prepared
    steps: int
    precision: Precision


def environment() -> dict[str, str]:
    """Of every contender."""
    inherited = {
        key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "GLIBC_TUNABLES")
    }
    return {
        **inherited,
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "GLOO_SOCKET_IFNAME": "lo",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONWARNINGS": "ignore",
    }


def contender(name: str, work: Work, folder: Path) -> Contender:
    """One of NAMES or OTHERS; what it writes goes to `folder`."""
    if name.startswith("ours"):
        return _ours(name, work, folder, lean=name == "ours-lean")
    if name == "floor":
        return _with_torchrun("floor", sys.executable, "floor.py", work, folder, allocator=True)
    python = trl_python()
    tuned, packing = name.endswith("-tuned"), "packing" in name
    return _with_torchrun(name, python, "trl_sft.py", work, folder, allocator=tuned, packing=packing)


def trl_python() -> str:
    """The interpreter of TRL's own locked environment in the cache, made where it is missing (a minute)."""
    return environments.python("bench")


def _with_torchrun(
    name: str,
    python: str,
    script: str,
    work: Work,
    folder: Path,
    *,
    allocator: bool,
    packing: bool = True,
) -> Contender:
    data = work.data
    settings = {
        "model": str(data.workspace / data.model),
        "rows": str(data.json),
        "output": str(folder),
        "steps": work.steps,
        "precision": work.precision,
        "packing": packing,
        "max_length": data.max_length,
        "rows_per_rank": round(data.max_length / MEAN_TOKENS),
        "learning_rate": RATE,
        "seed": SEED,
    }
    runner = [python, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={RANKS}"]
    variables = {**environment(), **({"GLIBC_TUNABLES": KEEP_FREED_MEMORY} if allocator else {})}
    return Contender(name, [*runner, str(HERE / script), json.dumps(settings)], variables, json_step)


def _ours(name: str, work: Work, folder: Path, *, lean: bool) -> Contender:
    """The real launcher with the configuration that the operator would render."""
    data = work.data
    job = f"bench-{os.getpid()}-{folder.name}"
    config = {
        "job": {"namespace": "bench", "name": job, "uid": job},
        "attempt": 1,
        "identity": job,
        "model": {"directory": data.model},
        "data": {"cache": data.cache, "maxLength": data.max_length, "packing": "BestFit"},
        "training": {
            "method": "Full",
            "maxSteps": work.steps + 1,  # the last one would be followed by a checkpoint
            "globalBatchSize": RANKS,
            "microBatchSize": 1,
            "gradientAccumulationSteps": 1,
            "learningRate": RATE,
            "scheduler": {"type": "Constant", "warmupSteps": 0, "minLearningRate": 0},
            "optimizer": {"type": "AdamW", "betas": [0.9, 0.999], "eps": 1e-8, "weightDecay": 0},
            "maxGradNorm": 1.0,
            "precision": work.precision,
            "seed": SEED,
        },
        "deepspeed": {"zeroStage": 2, "activationCheckpointing": "Full" if lean else "None"},
        "topology": {"nodes": 1, "processesPerNode": RANKS, "accelerator": "cpu"},
        "checkpoint": {"keepLast": 1, "onExisting": "StartFresh"},
        "evaluation": {},
        "export": {"format": "Merged"},
        "keepFreedMemory": not lean,
    }
    given, scratch = folder / "config", folder / "run"
    for path in (given, scratch):
        path.mkdir(parents=True)
    (given / "train.json").write_text(TrainConfig.model_validate(config).to_json())
    (given / "hostfile").write_text(f"bench-0 slots={RANKS}\n")
    (folder / "hosts").write_text("127.0.0.1 bench-0\n")
    address = f"127.{1 + os.getpid() % 250}.{1 + os.getpid() // 250 % 250}.2"
    variables = {
        "SFTJOB_WORKSPACE": str(data.workspace),
        "SFTJOB_CONFIG": str(given),
        "SFTJOB_RUN": str(scratch),
        "SFTJOB_TERMINATION_LOG": str(folder / "message.json"),
        "SFTJOB_POD_IP": address,
        "SFTJOB_HOSTS": str(folder / "hosts"),
        "JOB_COMPLETION_INDEX": "0",
    }
    curves = data.workspace / "jobs" / job / "report" / "metrics.jsonl"

    def reads(line: str) -> Step | None:
        if (found := _STEP.search(line)) is None:
            return None
        return _counted(curves, int(found[1]), float(found[2]))

    command = [sys.executable, "-m", "sft_trainer", "launch"]
    return Contender(name, command, {**environment(), **variables}, reads)


def _counted(curves: Path, step: int, loss: float) -> Step:
    """Rank 0 speaks for all, and writes the curves beside its log."""
    while True:
        for line in curves.read_text().splitlines() if curves.exists() else ():
            try:
                entry = json.loads(line)
            except ValueError:
                continue  # half a line: it is being written
            if entry["step"] == step:
                return Step(0, step, entry["tokens"], entry["supervised_tokens"], loss)
