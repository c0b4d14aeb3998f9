"""QLoRA (https://arxiv.org/abs/2305.14314): the frozen base in four bits, NF4 with quantised constants, by bitsandbytes.

Linear layers are quantised; embeddings, head and norms are not. What is trained is the quantised model with its adapters,
so that is what exports are compared with, and what a merged export holds: the base dequantised, and the adapters on it.
"""

from __future__ import annotations

from typing import Any

import torch
import transformers
from transformers.pytorch_utils import Conv1D

from sft_trainer.errors import UserError

_KIND = "Params4bit"  # of bitsandbytes, which is imported for QLoRA only


def settings(dtype: torch.dtype) -> Any:
    """What from_pretrained has to be told; layers compute in `dtype`.

    Raises:
        UserError: there is no bitsandbytes, or none for this machine.
    """
    try:
        import bitsandbytes  # noqa: F401
    except Exception as error:  # its native library fails to load in many ways
        raise UserError(
            "QLoRAUnavailable",
            f"training.method QLoRA needs bitsandbytes, which does not load here ({error}); "
            "use the trainer image of the operator's release, or set training.method: LoRA",
        ) from error
    return transformers.BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )


def leave_out_constants(model: Any) -> None:
    """Let `model.state_dict()` have none of the constants of four-bit weights: checkpoints leave out what is frozen."""
    for module in model.modules():
        if type(getattr(module, "weight", None)).__name__ == _KIND:
            module.register_state_dict_post_hook(_without_constants)


def _without_constants(module: Any, state: dict[str, Any], prefix: str, metadata: Any) -> None:
    for key in [key for key in state if key.startswith(f"{prefix}weight.")]:
        del state[key]


def dequantised(model: Any) -> dict[str, torch.Tensor]:
    """The four-bit weights of `model` as it computes with them, on the CPU, by the names of its base model."""
    found = {}
    for name, parameter in model.named_parameters():
        if type(parameter).__name__ == _KIND:
            from bitsandbytes.functional import dequantize_4bit

            whole = dequantize_4bit(parameter.data, parameter.quant_state).cpu()
            found[name.removeprefix("base_model.model.").replace(".base_layer.", ".")] = whole
    return found


def replace(model: Any, weights: dict[str, torch.Tensor]) -> None:
    """Give a plain `model` the weights that `dequantised` has found."""
    own = dict(model.named_parameters())
    turned = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, Conv1D)}
    with torch.no_grad():
        for name, tensor in weights.items():
            own[name].copy_(
                tensor.T if name in turned else tensor
            )  # transformers packs the layers of GPT-2 turned
