"""Which layers get adapters, and what is said of names that are none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import tiny
from sft_trainer import lora
from sft_trainer.config import LoRA
from sft_trainer.errors import UserError


@pytest.fixture
def model(tmp_path: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(str(tiny.model(tmp_path / "tiny")))


def adapted(model: Any, *names: str) -> set[str]:
    """The last names of the layers that have adapters."""
    adapters = LoRA(rank=2, alpha=4, dropout=0.0, target_modules=list(names))
    found = [
        name for name, parameter in lora.add(model, adapters).named_parameters() if parameter.requires_grad
    ]
    return {name.partition(".lora_")[0].rpartition(".")[2] for name in found}


def test_all_linear_layers_but_the_head_get_adapters(model: Any) -> None:
    projections = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert adapted(model, "AllLinear") == projections


def test_layers_may_be_named_by_the_end_of_their_path(model: Any) -> None:
    assert adapted(model, "self_attn.q_proj", "up_proj") == {"q_proj", "up_proj"}


def test_a_head_with_weights_of_its_own_may_have_an_adapter(tmp_path: Path) -> None:
    config = json.loads((tiny.model(tmp_path / "tiny") / "config.json").read_text())
    untied = transformers.AutoConfig.for_model(**{**config, "tie_word_embeddings": False})
    assert adapted(transformers.AutoModelForCausalLM.from_config(untied), "lm_head") == {"lm_head"}


@pytest.mark.parametrize("variant", ["LoRA", "RSLoRA", "DoRA"])
def test_a_variant_is_merged_by_its_formula(variant: str, model: Any) -> None:
    """W + s B A with s = alpha / r or alpha / sqrt(r); of DoRA the rows are scaled to their trained norms."""
    base = model.model.layers[0].self_attn.q_proj.weight.detach().clone()
    settings = LoRA.model_validate(
        {"rank": 4, "alpha": 8, "dropout": 0.0, "targetModules": ["q_proj"], "variant": variant}
    )
    adapted = lora.add(model, settings)
    layer = adapted.base_model.model.model.layers[0].self_attn.q_proj
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    torch.nn.init.normal_(b, std=0.1)
    expected = base + (8 / 4 if variant != "RSLoRA" else 8 / 4**0.5) * (b @ a)
    if variant == "DoRA":
        norms = layer.lora_magnitude_vector["default"].weight
        torch.testing.assert_close(norms, base.norm(dim=1))  # as initialised
        torch.nn.init.uniform_(norms, 0.5, 2.0)
        expected = norms[:, None] * expected / expected.norm(dim=1, keepdim=True)
    ids = torch.arange(20)[None]
    before = adapted(input_ids=ids).logits
    merged = adapted.merge_and_unload()
    torch.testing.assert_close(merged.model.layers[0].self_attn.q_proj.weight, expected)
    torch.testing.assert_close(merged(input_ids=ids).logits, before, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["lm_head", "embed_tokens"])
def test_a_head_that_shares_the_embeddings_weights_is_refused(model: Any, name: str) -> None:
    with pytest.raises(UserError, match=f"{name} shares its weights") as caught:
        adapted(model, "q_proj", name)
    assert caught.value.reason == "TiedTargetModules"


@pytest.mark.parametrize(
    ("names", "wrong"),
    [
        (("q_proj", "v_prj"), "v_prj"),
        (("proj",), "proj"),
        (("q_proj", "mlp"), "mlp"),
        (("AllLinear", "q_proj"), "AllLinear"),
    ],
    ids=["typo", "part-of-a-name", "no-layer", "all-and-one"],
)
def test_a_name_of_no_layer_is_refused_with_the_names_there_are(
    model: Any, names: tuple[str, ...], wrong: str
) -> None:
    with pytest.raises(
        UserError, match=f"no layer of this model is called {wrong}; it has .*lm_head.*q_proj"
    ) as caught:
        adapted(model, *names)
    assert caught.value.reason == "UnknownTargetModules"
