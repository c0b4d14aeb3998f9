"""Turns a .gguf file into the plain Hugging Face folder that DeepSpeed can train, once per file.

transformers reads the format but refuses to save what it has read ("quantized with gguf"), so the
de-quantised weights are put into a plain model of the same configuration. They are stored as fp32: the
master weights of the training, and rounding them to bf16 would lose what the quantisation has left.
Imports torch, and only here.
"""

from __future__ import annotations

import hashlib
import logging
import os
import time
from pathlib import Path

from sft_trainer import foreign, ggufheader, layout, uses
from sft_trainer.data import cache
from sft_trainer.errors import UserError, classify

logger = logging.getLogger(__name__)


def convert(path: Path, workspace: Path) -> tuple[Path, str]:
    """The folder made of the file `path`, and the file's sha256. A folder made earlier is taken as it is.

    UserError InvalidModel if the file is no GGUF, or of an architecture that transformers cannot read.
    """
    with path.open("rb") as stream:
        if stream.read(4) != ggufheader.MAGIC:
            raise UserError("InvalidModel", f"model.path: {path.name} is not a GGUF file; copy it again")
        try:
            ggufheader.check(path)
        except ValueError as exc:
            raise UserError(
                "InvalidModel", f"model.path: {path.name} is damaged: its header {exc}; copy it again"
            ) from exc
        stream.seek(0)
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    entry = layout.model_cache(workspace) / digest[:16]
    with cache.alone(entry):
        if uses.touch(entry) and (entry / "config.json").is_file():
            logger.info("%s is converted already", path.name)
        else:
            _write(path, entry)
    return entry, digest


def _write(path: Path, entry: Path) -> None:
    logger.info("converting %s (%d MB) to a Hugging Face folder ...", path.name, path.stat().st_size >> 20)
    started = time.monotonic()
    with cache.staging(entry) as directory:
        try:
            _convert(path, directory)
        except Exception as exc:
            raise _explained(exc, path) from exc
        for file in directory.iterdir():
            file.chmod(0o644)  # the weights are created readable for their owner only
            cache.sync(file)
        cache.publish(directory, entry)
    logger.info("converted %s in %.0f s", path.name, time.monotonic() - started)


def _convert(path: Path, directory: Path) -> None:
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TQDM_DISABLE", "1")  # a progress bar is a thousand lines in a pod's log
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    folder, name = str(path.parent), path.name
    tokenizer = transformers.AutoTokenizer.from_pretrained(
        folder, gguf_file=name, local_files_only=True, **foreign.NO_CODE
    )
    read = transformers.AutoModelForCausalLM.from_pretrained(
        folder, gguf_file=name, dtype=torch.float32, local_files_only=True, **foreign.NO_CODE
    )
    fields = {
        k: v for k, v in read.config.to_dict().items() if k not in ("quantization_config", "_name_or_path")
    }
    config = type(read.config).from_dict({**fields, "use_cache": True})
    with torch.device("meta"):  # no memory and no random numbers for weights that are replaced at once
        plain = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    plain.load_state_dict(read.state_dict(), assign=True)
    plain.tie_weights()
    plain.generation_config = read.generation_config
    plain.save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def _explained(exc: Exception, path: Path) -> Exception:
    """A full volume or too little memory keep their class; anything else is the file's."""
    known = classify(exc)
    if known.reason != "Crash":
        return known
    return UserError("InvalidModel", f"model.path: {path.name} cannot be converted: {known.message}")
