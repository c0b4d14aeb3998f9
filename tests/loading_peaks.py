"""What a rank holds while it loads a model, measured in the rank: for tests/trainer/test_loading.py."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import torch


def anonymous() -> int:
    """Bytes of this process that are its own: not the pages of a mapped file, which the kernel can take back."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("this kernel does not say")


class Peak:
    """The most that was ever there in the block, above what was there before."""

    def __enter__(self) -> Peak:
        self.bytes, self._over, self._before = 0, threading.Event(), anonymous()
        self._watch = threading.Thread(target=self._look, daemon=True)
        self._watch.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._over.set()
        self._watch.join()

    def _look(self) -> None:
        while not self._over.is_set():
            self.bytes = max(self.bytes, anonymous() - self._before)
            time.sleep(0.001)


def loaded(world: Any, folder: str, small: str, kind: str) -> dict[str, Any]:
    """Load partitioned and compare every tensor with what transformers loads."""
    import deepspeed
    import transformers

    from sft_trainer import engine, model

    engine.prepare("cpu")
    dtype = getattr(torch, kind)
    zero3 = {
        "train_micro_batch_size_per_gpu": 1,
        "zero_optimization": {"stage": 3},
        "bf16": {"enabled": kind == "bfloat16"},
    }
    settings: dict[str, Any] = {
        "dtype": dtype,
        "adapters": None,
        "activation_checkpointing": "None",
        "zero3": zero3,
        "seed": 1,
    }
    model.load(Path(small), **settings)  # what is imported only now is not the model's
    with Peak() as peak:
        mine = model.load(Path(folder), **settings)
    whole = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    theirs, wrong = dict(whole.named_parameters()), []
    for name, parameter in mine.named_parameters():
        with deepspeed.zero.GatheredParameters([parameter]):
            if parameter.dtype != dtype or not torch.equal(parameter, theirs.pop(name)):
                wrong.append(name)
    buffers = dict(whole.named_buffers())
    wrong += [
        n
        for n, b in mine.named_buffers()
        if not torch.equal(b, other := buffers.pop(n)) or b.dtype != other.dtype
    ]
    held = sum(parameter.ds_tensor.numel() for parameter in mine.parameters())
    peaks = world.gather(peak.bytes)
    return {"wrong": [*wrong, *theirs, *buffers], "peaks": peaks, "held": held * dtype.itemsize}
