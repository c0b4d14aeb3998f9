"""Facts of a model from its headers, and models that are refused with the reason."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import tiny
from sft_trainer import weights
from sft_trainer.config import ModelFacts, ParameterGroup
from sft_trainer.errors import UserError
from sft_trainer.facts import model_facts, trained_parameters

VOCABULARY, HIDDEN, LAYERS = 258, 32, 2


def facts(model: Path) -> ModelFacts:
    return model_facts(model, "here", "models/here")


def change(model: Path, **fields: Any) -> None:
    config = json.loads((model / "config.json").read_text())
    config.update(fields)
    (model / "config.json").write_text(json.dumps({key: v for key, v in config.items() if v is not None}))


def shard(model: Path, names: list[str], **extra: tuple[int, ...]) -> None:
    """Cut the weights into two files with an index; `extra` are further tensors by shape."""
    from safetensors.numpy import load_file, save_file

    tensors = load_file(model / "model.safetensors")
    template = next(iter(tensors.values()))
    tensors |= {
        name.replace("__", "."): template.reshape(-1)[:1].repeat(s[0] * s[1]).reshape(s)
        for name, s in extra.items()
    }
    (model / "model.safetensors").unlink()
    half = len(tensors) // 2
    parts = dict(zip(names, (list(tensors)[:half], list(tensors)[half:]), strict=True))
    for name, keys in parts.items():
        save_file({key: tensors[key] for key in keys}, model / name)
    index = {key: name for name, keys in parts.items() for key in keys}
    (model / weights.INDEX).write_text(json.dumps({"weight_map": index}))


def test_what_patterns_freeze_is_not_counted_as_trained(tmp_path: Path) -> None:
    model = tiny.model(tmp_path / "m")
    shapes, whole = weights.shapes(model), facts(model).parameters
    assert trained_parameters(shapes, True, []) == whole
    keep = ParameterGroup(pattern="model.layers.1.mlp.*", learning_rate_factor=2)
    layers = ParameterGroup(pattern="model.layers.*", freeze=True)
    outside = VOCABULARY * HIDDEN + HIDDEN
    assert trained_parameters(shapes, True, [layers]) == outside
    assert trained_parameters(shapes, True, [keep, layers]) == outside + 3 * 2 * HIDDEN * HIDDEN


def test_counts_follow_from_the_shapes(tmp_path: Path) -> None:
    found = facts(tiny.model(tmp_path / "m"))
    linear = LAYERS * (4 * HIDDEN * HIDDEN + 3 * 2 * HIDDEN * HIDDEN)
    norms = HIDDEN * (2 * LAYERS + 1)
    assert found.parameters == VOCABULARY * HIDDEN + linear + norms
    assert found.embedding_parameters == VOCABULARY * HIDDEN
    assert found.lora_parameters_per_rank == LAYERS * (4 * 2 * HIDDEN + 3 * 3 * HIDDEN)
    assert (found.hidden_size, found.intermediate_size, found.layers, found.heads) == (
        HIDDEN,
        2 * HIDDEN,
        LAYERS,
        2,
    )
    assert (found.vocabulary_size, found.max_positions, found.tied_embeddings) == (VOCABULARY, 4096, True)


def test_a_head_of_its_own_counts_as_embedding_and_gets_no_adapter(tmp_path: Path) -> None:
    model = tiny.model(tmp_path / "m")
    tied = facts(model)
    shard(model, ["a.safetensors", "b.safetensors"], lm_head__weight=(VOCABULARY, HIDDEN))
    change(model, tie_word_embeddings=False)
    own = facts(model)
    assert not own.tied_embeddings
    assert own.parameters == tied.parameters + VOCABULARY * HIDDEN
    assert own.embedding_parameters == 2 * tied.embedding_parameters
    assert own.lora_parameters_per_rank == tied.lora_parameters_per_rank
    change(model, tie_word_embeddings=True)  # stored although tied: one tensor in memory
    assert facts(model).parameters == tied.parameters


def test_names_of_other_architectures_and_nested_configurations_are_read(tmp_path: Path) -> None:
    model = tiny.model(tmp_path / "m")
    change(
        model,
        hidden_size=None,
        num_hidden_layers=None,
        num_attention_heads=None,
        max_position_embeddings=None,
    )
    change(model, n_embd=32, n_layer=2, n_head=2, n_positions=512)
    assert (facts(model).hidden_size, facts(model).max_positions) == (32, 512)
    text = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(
        json.dumps({"architectures": ["XForConditionalGeneration"], "text_config": text})
    )
    assert facts(model).layers == 2


def test_heads_experts_and_caps_are_read(tmp_path: Path) -> None:
    model = tiny.model(tmp_path / "m")
    plain = facts(model)
    assert (plain.normalised_queries, plain.experts_per_token, plain.experts_intermediate_size) == (
        False,
        0,
        0,
    )
    assert plain.capped_logits is None
    change(model, head_dim=24, num_experts_per_tok=2, moe_intermediate_size=16, final_logit_softcapping=30.0)
    assert facts(model).experts_per_token == 0, "without weights of experts there are none"
    shard(
        model,
        ["a.safetensors", "b.safetensors"],
        model__layers__0__self_attn__q_norm__weight=(24, 1),
        model__layers__0__mlp__experts__0__up_proj__weight=(16, HIDDEN),
        model__layers__0__mlp__shared_expert__up_proj__weight=(40, HIDDEN),
    )
    found = facts(model)
    assert (found.head_size, found.normalised_queries, found.capped_logits) == (24, True, True)
    assert (found.experts_per_token, found.experts_intermediate_size) == (2, 2 * 16 + 40)
    change(model, qk_nope_head_dim=16, qk_rope_head_dim=8)
    assert facts(model).head_size == 24
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "final_logit_softcapping": None}))
    assert facts(model).capped_logits is False


def test_facts_of_an_older_preparation_are_read(tmp_path: Path) -> None:
    new = {
        "head_size",
        "normalised_queries",
        "experts_per_token",
        "experts_intermediate_size",
        "capped_logits",
    }
    document = facts(tiny.model(tmp_path / "m")).model_dump(by_alias=True, exclude=new)
    assert ModelFacts.model_validate(document).head_size is None


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"architectures": ["BertForMaskedLM"]}, "is a BertForMaskedLM; a causal language model is needed"),
        ({"architectures": None}, "names no architecture"),
        ({"quantization_config": {"quant_method": "gptq"}}, "is quantised (gptq)"),
        ({"hidden_size": None}, "names no hidden size"),
        (
            {"architectures": ["MambaForCausalLM"], "model_type": "mamba"},
            "MambaForCausalLM, which has no attention",
        ),
        (
            {"architectures": ["T5ForConditionalGeneration"], "is_encoder_decoder": True},
            "is a T5ForConditionalGeneration, an encoder and a decoder",
        ),
    ],
    ids=["masked", "nameless", "quantised", "sizeless", "no attention", "encoder"],
)
def test_models_that_cannot_be_trained_are_refused(
    tmp_path: Path, fields: dict[str, Any], words: str
) -> None:
    model = tiny.model(tmp_path / "m")
    change(model, **fields)
    with pytest.raises(UserError) as caught:
        facts(model)
    assert caught.value.reason == "UnsupportedModel"
    assert words in caught.value.message


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    model = tiny.model(tmp_path / "m")
    shard(model, ["a.safetensors", "b.safetensors"])
    assert facts(model).layers == LAYERS
    (model / "b.safetensors").unlink()
    with pytest.raises(UserError, match=r"lacks b.safetensors \(1 of 2 weight files are missing\)"):
        facts(model)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "not a safetensors file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00", "Git LFS pointer"),
        (b"\x05\x00\x00\x00\x00\x00\x00\x00nojson", "not a safetensors file"),
        (None, "its header says"),
    ],
    ids=["empty", "pointer", "garbage", "short"],
)
def test_damaged_weights_are_refused(tmp_path: Path, content: bytes | None, words: str) -> None:
    file = tiny.model(tmp_path / "m") / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1] if content is None else content)
    with pytest.raises(UserError, match=words) as caught:
        facts(file.parent)
    assert caught.value.reason == "WeightsDamaged"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("pytorch_model.bin", "only pickled weights (pytorch_model.bin)"),
        ("x.gguf", "holds x.gguf; name the file itself"),
    ],
)
def test_weights_of_another_kind_are_refused(tmp_path: Path, name: str, words: str) -> None:
    model = tiny.model(tmp_path / "m")
    (model / "model.safetensors").rename(model / name)
    with pytest.raises(UserError) as caught:
        facts(model)
    assert words in caught.value.message


def test_the_fingerprint_is_that_of_the_content(tmp_path: Path) -> None:
    one = weights.fingerprint(tiny.model(tmp_path / "one"))
    copy = Path(shutil.copytree(tmp_path / "one", tmp_path / "copy", copy_function=shutil.copyfile))
    assert weights.fingerprint(copy) == one
    assert weights.fingerprint(tiny.model(tmp_path / "trained", seed=1)) != one
    change(copy, rms_norm_eps=1e-6)
    assert weights.fingerprint(copy) != one
