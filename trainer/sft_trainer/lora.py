"""Low-rank adapters through peft."""

from __future__ import annotations

from typing import Any

import peft
import torch
from transformers.pytorch_utils import Conv1D

from sft_trainer.config import LoRA, TokenRange
from sft_trainer.errors import UserError

ALL_LINEAR = "AllLinear"
_ADAPTABLE = (torch.nn.Linear, torch.nn.Embedding, Conv1D)  # Conv1D is what GPT-2 calls its linear layers


def add(model: Any, adapters: LoRA, added: TokenRange | None = None) -> Any:
    """`model` with frozen weights and fresh adapters on the linear layers that `adapters` names.

    Of the tokens `added` to the vocabulary the embeddings are trained as well, and the head's rows, tied or not.

    Raises:
        UserError: a name in targetModules is of no layer, or of one whose weights are not its own.
    """
    everything = adapters.target_modules == [ALL_LINEAR]
    if not everything:
        _check(adapters.target_modules, model)
    settings = peft.LoraConfig(
        r=adapters.rank,
        lora_alpha=adapters.alpha,
        lora_dropout=adapters.dropout,
        target_modules="all-linear" if everything else list(adapters.target_modules),
        use_rslora=adapters.variant == "RSLoRA",
        use_dora=adapters.variant == "DoRA",
        bias="none",
        task_type="CAUSAL_LM",
        trainable_token_indices=None if added is None else _trained_rows(model, added),
    )
    return peft.get_peft_model(model, settings)


def _trained_rows(model: Any, added: TokenRange) -> dict[str, list[int]]:
    """Layer to numbers; of tied ones the embedding, whose rows peft gives to both."""
    head = model.get_output_embeddings()
    if head is not None and getattr(head, "bias", None) is not None:
        raise UserError(
            "AddedTokensUnsupported",
            "model.addTokens: the head of this model has a bias, which peft leaves out where rows of the head are "
            "trained; set training.method: Full, or remove model.addTokens",
        )
    names = {id(module): name for name, module in model.named_modules()}
    layers = [model.get_input_embeddings()]
    if head is not None and head.weight is not layers[0].weight:
        layers.append(head)
    return {names[id(layer)]: list(range(added.first, added.end)) for layer in layers}


def _check(targets: list[str], model: Any) -> None:
    """Every name must be of a layer: peft is content when one of them is, and a typo trains less in silence."""
    layers = {name: module for name, module in model.named_modules() if isinstance(module, _ADAPTABLE)}
    tied = [model.get_input_embeddings(), model.get_output_embeddings()]
    shares = tied[1] is not None and tied[0].weight is tied[1].weight
    unknown = []
    for target in targets:
        found = [module for name, module in layers.items() if f".{name}".endswith(f".{target}")]
        if shares and any(module is one for module in found for one in tied):
            raise UserError(
                "TiedTargetModules",
                f"training.lora.targetModules: {target} shares its weights with the embedding of this model, so "
                "an adapter of one cannot be merged without changing the other; leave it out",
            )
        if not found:
            unknown.append(target)
    if unknown:
        known = ", ".join(sorted({name.rpartition(".")[2] for name in layers}))
        raise UserError(
            "UnknownTargetModules",
            f"training.lora.targetModules: no layer of this model is called {', '.join(unknown)}; "
            f"it has {known}; name some of these, or [{ALL_LINEAR}] alone",
        )
