"""Loads the prepared model folder for training: attention, adapters, activation checkpointing."""

from __future__ import annotations

import logging
from math import prod
from pathlib import Path
from typing import Any, Literal

import torch
import transformers

from sft_trainer import foreign, partition, quantise, recompute
from sft_trainer.config import Attention, LoRA, Recompute, TokenRange
from sft_trainer.errors import UserError

logger = logging.getLogger(__name__)

Model = Any  # transformers.PreTrainedModel or peft.PeftModel, whose types are not published


def load(
    directory: Path,
    *,
    dtype: torch.dtype,
    adapters: LoRA | None,
    added: TokenRange | None = None,
    quantised: bool = False,
    activation_checkpointing: Recompute,
    zero3: dict[str, Any] | None,
    seed: int,
    attention: Attention | None = None,
) -> Model:
    """The model in training form, on the CPU.

    `zero3` is the DeepSpeed configuration when parameters are to be partitioned at once, so that no rank ever
    holds the whole model; until then they have the type of their file, as which they take no memory. All ranks draw
    the same initial adapters from `seed`. `added` are tokens whose embeddings are trained beside adapters.
    `quantised`: the frozen weights in four bits. `attention` is the one asked for; selfcheck.py makes of it, or of what
    is loaded without, what is used.

    Raises:
        UserError: the folder does not hold a causal language model that transformers can load, or not one with SDPA.
    """
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    more: dict[str, Any] = {}
    if quantised:
        more["quantization_config"] = quantise.settings(dtype)
        if torch.cuda.is_available():
            more["device_map"] = {"": torch.cuda.current_device()}  # where it is quantised
    model = _from_pretrained(directory, dtype if zero3 is None else "auto", attention, more)
    model.config.use_cache = False
    if quantised:
        quantise.leave_out_constants(model)
    if adapters is not None:
        from sft_trainer import lora  # peft: only where it is needed

        torch.manual_seed(seed)
        model = lora.add(model, adapters, added)
    if zero3 is not None:
        partition.partition(model, zero3, dtype)
        model.config.dtype = dtype
    recompute.enable(model, activation_checkpointing)
    if adapters is not None and activation_checkpointing != "None":
        model.enable_input_require_grads()
    return model


def _from_pretrained(
    directory: Path, dtype: torch.dtype | Literal["auto"], attention: Attention | None, more: dict[str, Any]
) -> Model:
    last: Exception | None = None
    for implementation in ("eager",) if attention == "Eager" else ("sdpa", "eager"):
        try:
            return transformers.AutoModelForCausalLM.from_pretrained(
                str(directory),
                dtype=dtype,
                attn_implementation=implementation,
                local_files_only=True,
                **foreign.NO_CODE_NO_PICKLES,
                **more,
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


def _elements(parameter: Any) -> int:
    packed = getattr(parameter, "quant_state", None)
    return (
        prod(packed.shape) if packed is not None else int(getattr(parameter, "ds_numel", parameter.numel()))
    )


def counts(model: Model) -> tuple[int, int]:
    """(all parameters, trainable parameters) in elements, also where they are partitioned or in four bits."""
    sizes = [(_elements(p), p.requires_grad) for p in model.parameters()]
    return sum(n for n, _ in sizes), sum(n for n, trainable in sizes if trainable)
