"""Tiny models of many architectures and two packs of documents: what tests of attention compute."""

from typing import Any

import torch
import transformers

LENGTHS = [[5, 30, 1, 12], [20, 28]]  # two packs of 48 tokens
SMALL: dict[str, Any] = {
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
MODELS: dict[str, dict[str, Any]] = {
    "llama": {"num_key_value_heads": 2},
    "qwen2": {"num_key_value_heads": 2},
    "qwen3": {"num_key_value_heads": 2, "head_dim": 16},
    "mistral": {"num_key_value_heads": 1, "sliding_window": 7},
    "gemma": {"num_key_value_heads": 1, "head_dim": 8},
    "gemma3_text": {
        "num_key_value_heads": 2,
        "sliding_window": 7,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "phi": {},
    "gpt_neox": {},
}


def network(kind: str, **more: Any) -> Any:
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(kind, **SMALL, **MODELS.get(kind, {}), **more)
    for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
        setattr(config, name, 0)
    implementation = "eager" if kind == "bloom" else "sdpa"  # which BLOOM has not
    return transformers.AutoModelForCausalLM.from_config(config, attn_implementation=implementation)


def packs() -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.randint(1, 50, (2, 48), generator=torch.Generator().manual_seed(1))
    return ids, torch.stack([torch.cat([torch.arange(n) for n in row]) for row in LENGTHS])


def gradients(model: Any, logits: torch.Tensor) -> list[torch.Tensor]:
    model.zero_grad()
    (logits * torch.linspace(-1, 1, logits.numel()).reshape(logits.shape)).sum().backward()
    return [p.grad.clone() for p in model.parameters()]
