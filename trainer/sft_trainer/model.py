"""Loads the prepared model folder for training: attention, adapters, activation checkpointing."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.integrations.deepspeed import HfDeepSpeedConfig

from sft_trainer import recompute
from sft_trainer.config import Attention, LoRA, Recompute
from sft_trainer.errors import UserError

logger = logging.getLogger(__name__)

Model = Any  # transformers.PreTrainedModel or peft.PeftModel, whose types are not published


def load(
    directory: Path,
    *,
    dtype: torch.dtype,
    adapters: LoRA | None,
    activation_checkpointing: Recompute,
    zero3: dict[str, Any] | None,
    seed: int,
    attention: Attention | None = None,
) -> Model:
    """The model in training form, on the CPU.

    `zero3` is the DeepSpeed configuration when parameters are to be partitioned while they are loaded, so
    that no rank ever holds the whole model. All ranks draw the same initial adapters from `seed`. `attention` is
    the one asked for; selfcheck.py makes of it, or of what is loaded without, what is used.

    Raises:
        UserError: the folder does not hold a causal language model that transformers can load, or not one with SDPA.
    """
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    keep_alive = HfDeepSpeedConfig(zero3) if zero3 is not None else None  # from_pretrained looks for it
    model = _from_pretrained(directory, dtype, attention)
    del keep_alive
    model.config.use_cache = False
    if adapters is not None:
        from sft_trainer import lora  # peft: only where it is needed

        torch.manual_seed(seed)
        model = lora.add(model, adapters)
    recompute.enable(model, activation_checkpointing)
    if adapters is not None and activation_checkpointing != "None":
        model.enable_input_require_grads()
    return model


def _from_pretrained(directory: Path, dtype: torch.dtype, attention: Attention | None) -> Model:
    last: Exception | None = None
    for implementation in ("eager",) if attention == "Eager" else ("sdpa", "eager"):
        try:
            return transformers.AutoModelForCausalLM.from_pretrained(
                str(directory), dtype=dtype, attn_implementation=implementation, local_files_only=True
            )
        except (ValueError, ImportError, OSError) as error:
            if implementation == "sdpa" and "scaled_dot_product_attention" in str(error):
                if attention == "SDPA":
                    raise UserError(
                        "AttentionUnsupported",
                        "model.attention is SDPA, which transformers does not have for this architecture: set it to "
                        "Eager, or remove it to have it chosen",
                    ) from error
                logger.info("this architecture has no SDPA attention in transformers")
                continue
            last = error
            break
    raise UserError(
        "ModelNotLoadable", f"the model in {directory.name} cannot be loaded: {_line(last)}"
    ) from last


def _line(error: Exception | None) -> str:
    return str(error).strip().splitlines()[0][:400] if error else "unknown reason"


def counts(model: Model) -> tuple[int, int]:
    """(all parameters, trainable parameters) in elements, also where ZeRO-3 has partitioned them."""
    sizes = [(int(getattr(p, "ds_numel", p.numel())), p.requires_grad) for p in model.parameters()]
    return sum(n for n, _ in sizes), sum(n for n, trainable in sizes if trainable)
