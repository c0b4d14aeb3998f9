"""Low-rank adapters through peft."""

from __future__ import annotations

from typing import Any

import peft

from sft_trainer.config import LoRA
from sft_trainer.errors import UserError

ALL_LINEAR = "AllLinear"


def add(model: Any, adapters: LoRA) -> Any:
    """`model` with frozen weights and fresh adapters on the linear layers that `adapters` names.

    Raises:
        UserError: no layer of the model has one of the names in targetModules.
    """
    everything = adapters.target_modules == [ALL_LINEAR]
    settings = peft.LoraConfig(
        r=adapters.rank,
        lora_alpha=adapters.alpha,
        lora_dropout=adapters.dropout,
        target_modules="all-linear" if everything else list(adapters.target_modules),
        bias="none",
        task_type="CAUSAL_LM",
    )
    try:
        return peft.get_peft_model(model, settings)
    except ValueError as error:
        names = ", ".join(adapters.target_modules)
        raise UserError(
            "UnknownTargetModules",
            f"training.lora.targetModules: no layer of this model is called {names}; use AllLinear or the "
            "names of its linear layers",
        ) from error
