"""What the planner has to know about a model: from config.json and the weights' headers, without torch."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

from sft_trainer import foreign, layout, weights
from sft_trainer.config import ModelFacts, ParameterGroup
from sft_trainer.errors import UserError
from sft_trainer.patterns import first_match

Shapes = Mapping[str, tuple[int, ...]]

_NAMES = {  # ours: what architectures call it
    "hidden_size": ("hidden_size", "n_embd", "d_model"),
    "layers": ("num_hidden_layers", "n_layer", "num_layers", "n_layers"),
    "heads": ("num_attention_heads", "n_head", "n_heads", "num_heads", "attention_heads"),
    "key_value_heads": ("num_key_value_heads", "num_kv_heads"),
    "vocabulary_size": ("vocab_size",),
    "intermediate_size": ("intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size"),
    "max_positions": (
        "max_position_embeddings",
        "n_positions",
        "n_ctx",
        "max_seq_len",
        "max_sequence_length",
    ),
    "head_size": ("head_dim",),
    "experts_per_token": ("num_experts_per_tok", "top_k_experts", "moe_topk", "moe_k"),
    "expert_size": ("moe_intermediate_size", "intermediate_size"),
}
_NEEDED = ("hidden_size", "layers", "heads", "vocabulary_size")
_LARGEST = 10**9
_WITHOUT_ATTENTION = {"falcon_mamba", "mamba", "mamba2", "rwkv", "xlstm"}
_GENERATES = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")
_CAP = "final_logit_softcapping"
_QUERY_NORM = re.compile(r"\.(q_norm|q_layernorm|query_norm|query_layernorm)\.")
_SHARED_EXPERT = re.compile(r"\.shared_experts?\.up_proj\.weight$")
_POSITIONS = re.compile(r"(^|\.)(wpe|embed_positions|position_embeddings)\.weight$")


def model_facts(directory: Path, resolved: str, relative: str) -> ModelFacts:
    """Facts of the Hugging Face folder `directory`, which lies at `relative` in the workspace.

    UserError ModelNotFound, UnsupportedModel, WeightsMissing or WeightsDamaged, with the fix.
    """
    document = read_config(directory)
    architecture = _supported(document, directory)
    shapes = weights.shapes(directory)
    text = document.get("text_config") or document
    try:
        numbers = _numbers(text, shapes)
    except ValueError as exc:
        raise UserError("UnsupportedModel", f"{layout.shown(directory)}/config.json: {exc}") from exc
    hidden = numbers["hidden_size"] or 0
    tied = bool(document.get("tie_word_embeddings", text.get("tie_word_embeddings", True)))
    tied = tied or not any(map(weights.HEAD.search, shapes))  # without a head of its own it can only be tied
    experts = sum(prod(shape) for name, shape in shapes.items() if ".experts." in name)
    per_token = (numbers["experts_per_token"] or 0) if experts else 0
    shared = max((shape[0] for name, shape in shapes.items() if _SHARED_EXPERT.search(name)), default=0)
    return ModelFacts(
        directory=relative,
        resolved=resolved,
        architecture=architecture,
        parameters=parameters(shapes, tied),
        embedding_parameters=embedding_parameters(shapes, tied),
        lora_parameters_per_rank=lora_parameters_per_rank(shapes),
        expert_parameters=experts,
        hidden_size=hidden,
        intermediate_size=numbers["intermediate_size"] or 4 * hidden,
        layers=numbers["layers"] or 0,
        heads=numbers["heads"] or 0,
        key_value_heads=numbers["key_value_heads"],
        head_size=_latent_head_size(text) or numbers["head_size"],
        normalised_queries=any(map(_QUERY_NORM.search, shapes)),
        experts_per_token=per_token,
        experts_intermediate_size=per_token * (numbers["expert_size"] or 0) + shared,
        capped_logits=text[_CAP] is not None if _CAP in text else None,
        vocabulary_size=numbers["vocabulary_size"] or 0,
        max_positions=numbers["max_positions"],
        tied_embeddings=tied,
    )


def parameters(shapes: Shapes, tied: bool) -> int:
    """Elements of all tensors; a tied head that was stored nevertheless counts once."""
    return sum(prod(shape) for name, shape in shapes.items() if not (tied and weights.HEAD.search(name)))


def embedding_parameters(shapes: Shapes, tied: bool) -> int:
    """Elements of the input embedding, and of the head where it is not tied."""
    return sum(
        prod(shape)
        for name, shape in shapes.items()
        if weights.EMBEDDING.search(name) or (weights.HEAD.search(name) and not tied)
    )


def trained_parameters(shapes: Shapes, tied: bool, wanted: Sequence[ParameterGroup]) -> int:
    """Elements of all tensors that no pattern freezes, by the names in the files: where a model has others they count."""
    left = {
        name: shape
        for name, shape in shapes.items()
        if (group := first_match(name, wanted)) is None or not group.freeze
    }
    return parameters(left, tied)


def lora_parameters_per_rank(shapes: Shapes) -> int:
    """Inputs plus outputs of every linear layer but the head: A is [r, in] and B is [out, r]."""
    return sum(sum(shape) for name, shape in shapes.items() if _is_linear(name, shape))


def read_config(directory: Path) -> dict[str, Any]:
    """config.json of a model folder; UserError ModelNotFound if it is not there or not readable."""
    path = directory / "config.json"
    if not path.is_file():
        raise UserError(
            "ModelNotFound",
            f"the folder {layout.shown(directory)} holds no config.json, so it is no Hugging Face model; "
            "model.path takes such a folder or a .gguf file",
        )
    document = foreign.document(path, "UnsupportedModel")
    if not isinstance(document, dict):
        raise UserError("UnsupportedModel", f"{layout.shown(directory)}/config.json is not an object")
    return document


def _supported(document: Mapping[str, Any], directory: Path) -> str:
    """The architecture's name."""
    names = document.get("architectures")
    architecture = str(names[0])[:100] if isinstance(names, list) and names else ""
    wrong = _wrong(document, architecture)
    if wrong:
        raise UserError("UnsupportedModel", f"the model {layout.shown(directory)} {wrong}")
    return architecture


def _wrong(document: Mapping[str, Any], architecture: str) -> str:
    """Why a model cannot be trained here; empty where it can."""
    quantised = document.get("quantization_config")
    if not architecture.endswith(_GENERATES):
        what = f"is a {architecture}" if architecture else "names no architecture"
        return f"{what}; a causal language model is needed"
    if document.get("is_encoder_decoder"):
        return f"is a {architecture}, an encoder and a decoder; a causal language model, a decoder alone, is needed"
    if document.get("model_type") in _WITHOUT_ATTENTION:
        return (
            f"is a {architecture}, which has no attention, and plans and FLOPs are those of attention; "
            "take a model with attention"
        )
    if quantised:
        method = quantised.get("quant_method", "") if isinstance(quantised, dict) else ""
        return f"is quantised ({method or 'unknown'}); take the unquantised one"
    return ""


def _is_linear(name: str, shape: tuple[int, ...]) -> bool:
    other = any(pattern.search(name) for pattern in (weights.EMBEDDING, _POSITIONS, weights.HEAD))
    return len(shape) == 2 and name.endswith(".weight") and not other


def _numbers(text: Any, shapes: Shapes) -> dict[str, int | None]:
    """What the planner reckons with, by our names; ValueError for what no model of these weights has."""
    if not isinstance(text, dict):
        raise ValueError("text_config is not an object")
    numbers = {ours: _number(text, theirs, ours in _NEEDED) for ours, theirs in _NAMES.items()}
    largest = max((size for shape in shapes.values() for size in shape), default=0)
    for ours in _NEEDED:  # each layer has tensors of its own, and the others are dimensions of tensors
        number, most = numbers[ours], len(shapes) if ours == "layers" else largest
        if number is None:
            raise ValueError(f"it names no {ours.replace('_', ' ')}")
        if number > most:
            name = next(name for name in _NAMES[ours] if text.get(name) is not None)
            raise ValueError(f"{name} is {number}, and the weights beside it are those of a smaller model")
    return numbers


def _latent_head_size(text: Mapping[str, Any]) -> int:
    """Of multi-head latent attention: the two parts of a query, with and without positions; 0 where there is none."""
    parts = (_number(text, (name,), needed=False) for name in ("qk_nope_head_dim", "qk_rope_head_dim"))
    return sum(part or 0 for part in parts)


def _number(text: Mapping[str, Any], names: tuple[str, ...], needed: bool) -> int | None:
    """None where the model has none, or a list with one for each layer."""
    name = next((name for name in names if text.get(name) is not None), "")
    found = text.get(name)
    number = found if isinstance(found, int | float) and not isinstance(found, bool) else None
    if number is not None and 1 <= number <= _LARGEST and number == int(number):
        return int(number)
    if found is None or (number is None and not needed):
        return None
    raise ValueError(f"{name} is {str(found)[:40]}, and has to be a whole number from 1 to {_LARGEST:,}")
