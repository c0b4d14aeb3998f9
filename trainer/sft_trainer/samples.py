"""`python -m sft_trainer samples jobs/NAME`: what the base model and the result say to held-out prompts.

Runs in a process of its own when the ranks have ended, so it has their memory and cannot harm them, and after
the export, so that the very files are asked which others will load. Bounded in number, tokens, seconds and
memory; whatever goes wrong is a line in the report and never an error of the job.
"""

from __future__ import annotations

import argparse
import gc
import logging
import os
import resource
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from pydantic import Field

from sft_trainer import events, foreign
from sft_trainer.checkpoint.files import write_atomically
from sft_trainer.config import Report, TrainConfig
from sft_trainer.data.cache import Split, TokenCache
from sft_trainer.launcher import cgroup
from sft_trainer.layout import JobFolder, within

logger = logging.getLogger(__name__)

MAX_NEW_TOKENS = 64
_SECONDS = 120.0  # for all answers of both models
_LONGEST_PROMPT = 512  # tokens; longer ones are passed over
_LOOKED_AT = 500  # rows
_ROOM = 1.25  # of the weights' size; what generating needs beside them is little
_GIB = 2**30


class Sample(Report):
    """A held-out prompt, the answer in the data, and what the models say (None = not asked in time)."""

    prompt: str
    reference: str
    before: str | None = None
    after: str | None = None


class Samples(Report):
    """`report/samples.json`. `note` says what is missing and why."""

    samples: list[Sample] = Field(default_factory=list)
    max_new_tokens: int = MAX_NEW_TOKENS
    note: str = ""


@dataclass(frozen=True)
class Prompt:
    """Token ids up to the first answer of a held-out conversation, and that answer."""

    ids: list[int]
    answer: list[int]


class LeftOutError(Exception):
    """There are no samples, for this reason."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Ask both models and leave their answers on the volume; 0 whatever comes of it."""
    parser = argparse.ArgumentParser(prog="python -m sft_trainer samples", description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, help="jobs/NAME in a workspace")
    parser.add_argument("--once", action="store_true", help="not if an earlier try did not come back")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="[samples] %(message)s", stream=sys.stderr)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # what is needed lies on the volume
    folder = JobFolder(options.folder.resolve())
    made = answered(folder, once=options.once)
    if made.note:
        logger.info("%s", made.note)
    write_atomically(folder.samples, made.to_json(indent=1))
    return 0


def answered(folder: JobFolder, *, once: bool) -> Samples:
    """Answers of both models, as far as they could be had."""
    try:
        story = events.read(folder.events)
        config = _config(story)
        tries = [event.kind for event in story if event.uid == config.job.uid]
        if once and tries.count("sampling") > tries.count("sampled"):
            raise LeftOutError("an earlier try did not come back")
        return _asked(folder, config)
    except LeftOutError as reason:
        return Samples(note=f"No sample answers: {reason}.")
    except Exception as error:
        logger.debug("no sample answers", exc_info=True)
        return Samples(note=f"No sample answers: {type(error).__name__}: {str(error)[:300]}")


def _config(story: Sequence[events.Event]) -> TrainConfig:
    begun = [event for event in story if event.kind == "begun"]
    if not begun:
        raise LeftOutError("no training has begun")
    return TrainConfig.model_validate(begun[-1].facts["config"])


def _asked(folder: JobFolder, config: TrainConfig) -> Samples:
    volume = folder.root.parent.parent
    if config.evaluation.samples == 0:
        raise LeftOutError("spec.evaluation.samples is 0")
    if not folder.export.is_dir():
        raise LeftOutError("there is no export")
    prompts = chosen(TokenCache(within(volume, config.data.cache)).eval, config.evaluation.samples)
    if not prompts:
        raise LeftOutError(f"no held-out row has a prompt of at most {_LONGEST_PROMPT} tokens")
    base = within(volume, config.model.directory)
    _require_room(base)
    log = events.Events(folder.events, config.job.uid, config.attempt)
    log.append("sampling")
    try:
        return _conversations(base, folder.export, prompts)
    finally:  # whoever gets here has not been killed
        log.append("sampled")


def _conversations(base: Path, export: Path, prompts: Sequence[Prompt]) -> Samples:
    from transformers import AutoTokenizer

    words = AutoTokenizer.from_pretrained(base, **foreign.NO_CODE)
    deadline = time.monotonic() + _SECONDS
    both = [
        [words.decode(ids, skip_special_tokens=True).strip() for ids in answers]
        for answers in _answers(base, export, words, prompts, deadline)
    ]
    before, after = (one + [None] * (len(prompts) - len(one)) for one in both)
    samples = [
        Sample(
            prompt=words.decode(prompt.ids, skip_special_tokens=True).strip(),
            reference=words.decode(prompt.answer, skip_special_tokens=True).strip(),
            before=before[index],
            after=after[index],
        )
        for index, prompt in enumerate(prompts)
    ]
    missing = any(one.before is None or one.after is None for one in samples)
    return Samples(samples=samples, note=f"Stopped after {_SECONDS:.0f} seconds." if missing else "")


def chosen(rows: Split, count: int) -> list[Prompt]:
    """Up to `count` prompts from all over the held-out rows."""
    looked_at = np.unique(np.linspace(0, len(rows) - 1, num=min(len(rows), _LOOKED_AT), dtype=int))
    found = [prompt for row in looked_at if (prompt := _prompt(*rows.row(int(row)))) is not None]
    picked = np.unique(np.linspace(0, len(found) - 1, num=min(len(found), count), dtype=int))
    return [found[index] for index in picked]


def _prompt(ids: Any, weights: Any) -> Prompt | None:
    supervised = np.flatnonzero(weights > 0)
    if not len(supervised) or not 0 < supervised[0] <= _LONGEST_PROMPT:
        return None
    start = int(supervised[0])
    breaks = np.flatnonzero(weights[start:] <= 0)
    end = start + int(breaks[0]) if len(breaks) else len(ids)
    return Prompt(ids[:start].tolist(), ids[start:end].tolist())


def _answers(
    base: Path, export: Path, words: Any, prompts: Sequence[Prompt], deadline: float
) -> Iterator[list[list[int]]]:
    """Those of the base, then those of the result; one model at a time is in memory."""
    half = time.monotonic() + (deadline - time.monotonic()) / 2
    network = _load(base)
    yield _generated(network, words, prompts, half)
    if (export / "config.json").is_file():
        del network
        gc.collect()
        network = _load(export)
    else:  # adapters alone
        from peft import PeftModel

        network = PeftModel.from_pretrained(network, str(export)).eval()
    yield _generated(network, words, prompts, deadline)


def _load(directory: Path) -> Any:
    """In the type of its files; over all GPUs of the pod where there are some."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    place = {"device_map": "auto"} if torch.cuda.is_available() else {}
    return AutoModelForCausalLM.from_pretrained(
        str(directory), dtype="auto", local_files_only=True, **foreign.NO_CODE_NO_PICKLES, **place
    ).eval()


def _generated(network: Any, words: Any, prompts: Sequence[Prompt], deadline: float) -> list[list[int]]:
    """Greedy answers, of as many prompts as there is time for."""
    import torch

    pad = words.pad_token_id if words.pad_token_id is not None else words.eos_token_id
    answers: list[list[int]] = []
    for prompt in prompts:
        left = deadline - time.monotonic()
        if left <= 0:
            break
        ids = torch.tensor([prompt.ids], device=network.device)
        with torch.inference_mode():
            output = network.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=MAX_NEW_TOKENS,
                max_time=left,
                do_sample=False,
                temperature=None,
                top_p=None,
                top_k=None,
                pad_token_id=pad,
            )
        answers.append(output[0, len(prompt.ids) :].tolist())
    return answers


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _require_room(base: Path) -> None:
    """LeftOutError where the model may not fit: the kernel would end the whole pod, and a finished job with it."""
    need = int(_ROOM * sum(path.stat().st_size for path in base.glob("*.safetensors"))) + _GIB
    if _has_gpu():
        import torch

        free = sum(torch.cuda.mem_get_info(index)[0] for index in range(torch.cuda.device_count()))
        if need > free:
            raise LeftOutError(f"{need / _GIB:.1f} GiB are needed and {free / _GIB:.1f} are free on the GPUs")
        return
    left = cgroup.memory_left()
    free = min(psutil.virtual_memory().available, left if left is not None else 2**62)
    if need > free:
        raise LeftOutError(f"{need / _GIB:.1f} GiB of memory are needed and {free / _GIB:.1f} are free")
    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    resource.setrlimit(resource.RLIMIT_DATA, (free if hard < 0 else min(free, hard), hard))
