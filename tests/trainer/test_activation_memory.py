"""What a model keeps for the backward pass, counted storage by storage, is what the planner estimates."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers

from kept_bytes import kept
from sft_trainer.facts import model_facts
from sftjob_operator.planning.memory import estimate
from sftjob_operator.planning.shape import Shape

TOKENS = 512
SIZES = {
    "num_hidden_layers": 4,
    "vocab_size": 512,
    "max_position_embeddings": 1024,
    "hidden_size": 256,
    "tie_word_embeddings": False,
}
# Proportions of published models, the hidden ones divided by 16 (by 4 in Qwen3-0.6B, by 8 in Qwen3-30B-A3B).
MODELS = {
    "Llama-3.1-8B": transformers.LlamaConfig(
        num_attention_heads=4, num_key_value_heads=1, intermediate_size=896, **SIZES
    ),
    "Qwen3-0.6B": transformers.Qwen3Config(
        num_attention_heads=8, num_key_value_heads=4, head_dim=64, intermediate_size=768, **SIZES
    ),
    "Mixtral-8x7B": transformers.MixtralConfig(
        num_attention_heads=4,
        num_key_value_heads=1,
        intermediate_size=896,
        num_local_experts=8,
        num_experts_per_tok=2,
        **SIZES,
    ),
    "Qwen3-30B-A3B": transformers.Qwen3MoeConfig(
        num_attention_heads=8,
        num_key_value_heads=1,
        head_dim=64,
        intermediate_size=768,
        moe_intermediate_size=96,
        num_experts=128,
        num_experts_per_tok=8,
        **SIZES,
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_the_estimate_of_activations_is_a_little_more_than_what_is_kept(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(MODELS[name], attn_implementation="sdpa")
    model.to(torch.bfloat16).save_pretrained(tmp_path)
    shape = Shape(
        world_size=1,
        zero_stage=2,
        micro_batch_size=1,
        max_length=TOKENS,
        checkpointing="None",
        precision="bf16",
        accelerator="gpu",
        lora_rank=None,
        attention="FlashAttention",  # its mask over the pack is not measured
    )
    estimated = estimate(model_facts(tmp_path, "here", "here"), shape).activations
    ids = torch.randint(0, 512, (1, TOKENS))
    measured = kept(model, lambda: model.train().model(input_ids=ids, use_cache=False))  # without the head
    assert measured <= estimated <= 1.1 * measured
