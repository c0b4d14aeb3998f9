"""Tiny models of many architectures with random weights, and one real training step of each; see test_models."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import transformers

import gang
from gradient_cells import batches
from sft_trainer import engine as engines
from sft_trainer import export as exports
from sft_trainer import loop, model
from sft_trainer.assemble import training_plan
from sft_trainer.batches import MicroBatch
from sft_trainer.checkpoint import fence
from sft_trainer.checkpoint.commit import Store
from sft_trainer.checkpoint.fence import Fence
from sft_trainer.collate import IGNORED, collate
from sft_trainer.config import TrainConfig
from sft_trainer.data.cache import TokenCache
from sft_trainer.distributed import World
from sft_trainer.facts import model_facts
from sft_trainer.layout import JobFolder
from sft_trainer.selfcheck import use_attention, use_loss_head

# Weights of this size make a model in which every token attended to matters.
_COMMON: dict[str, Any] = {
    "vocab_size": 260,
    "initializer_range": 0.2,
    "bos_token_id": None,
    "eos_token_id": 257,
    "pad_token_id": 257,
}
_LLAMA_LIKE: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
}
_WINDOW = 8  # shorter than most documents
MODELS: dict[str, dict[str, Any]] = {
    "llama": _LLAMA_LIKE,
    "qwen2": _LLAMA_LIKE | {"use_sliding_window": True, "sliding_window": _WINDOW, "max_window_layers": 1},
    "qwen3": _LLAMA_LIKE,
    "mistral": _LLAMA_LIKE | {"sliding_window": _WINDOW},
    "gemma": _LLAMA_LIKE,
    "gemma2": _LLAMA_LIKE | {"sliding_window": _WINDOW, "query_pre_attn_scalar": 8},
    "gemma3_text": _LLAMA_LIKE | {"sliding_window": _WINDOW, "query_pre_attn_scalar": 8},
    "phi": _LLAMA_LIKE,
    "phi3": _LLAMA_LIKE,
    "gpt_neox": _LLAMA_LIKE,
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256},
    "opt": {
        "hidden_size": 32,
        "word_embed_proj_dim": 32,
        "ffn_dim": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 256,
    },
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4},
    "gpt_neo": {
        "hidden_size": 32,
        "num_layers": 2,
        "num_heads": 4,
        "attention_types": [[["global", "local"], 1]],
        "window_size": _WINDOW,
        "max_position_embeddings": 256,
    },
    "xglm": {
        "d_model": 32,
        "ffn_dim": 64,
        "num_layers": 2,
        "attention_heads": 4,
        "max_position_embeddings": 256,
    },
}


def write(folder: Path, kind: str) -> None:
    """A model of architecture `kind` without dropout, as a Hugging Face folder."""
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(kind, **{**_COMMON, **MODELS[kind]})
    for name in vars(config):
        if "drop" in name and isinstance(getattr(config, name), float):
            setattr(config, name, 0.0)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)


def steps(world: World, volume: str) -> dict[str, dict[str, Any]]:
    """Of each architecture: whether it is packed, norm and loss of a step and of its reference, and its export."""
    engines.prepare("cpu")
    return {kind: _step(kind, world, Path(volume)) for kind in MODELS}


def _step(kind: str, world: World, volume: Path) -> dict[str, Any]:
    directory = f"models/{kind}"
    write(volume / directory, kind)
    changes = {
        "job__name": kind.replace("_", "-"),
        "model__directory": directory,
        "training__globalBatchSize": 8,
        "training__microBatchSize": 2,
        "training__gradientAccumulationSteps": 4,
    }
    config = TrainConfig.model_validate(gang.Job(volume, ranks=1, changes=changes).config())
    rows = TokenCache(volume / config.data.cache).train
    norm, loss = _reference(volume / directory, config, rows)
    network = _load(volume / directory)
    engine = engines.initialize(network, config, engines.deepspeed_config(config, "fp32"))
    chunked = use_loss_head(engine, rows, world)
    packed = use_attention(engine, rows, world).packed
    folder = JobFolder.of(volume, config.job.name)
    mine = Fence(uid="uid-1", attempt=1, started="t", run_id="run")
    fence.claim(folder.fence, mine)
    parts = loop.Parts(
        config=config,
        world=world,
        engine=engine,
        rows=rows,
        plan=training_plan(config, rows.lengths, packed=packed),
        held_out=None,
        store=Store(folder, mine, 1),
        reporter=None,  # type: ignore[arg-type]
        stop=SimpleNamespace(requested=False),  # type: ignore[arg-type]
        precision="fp32",
        checkpoint_bytes=0,
    )
    own = loop.optimizer_step(parts, batches(parts, 0), 1e-3)
    size = exports.export(parts, volume)  # loads it again, and compares what it says
    engine.destroy()
    return {
        "packed": packed,
        "chunked": chunked,
        "attention": network.config._attn_implementation,
        "norm": own.norm / norm,
        "loss": own.loss_sum / own.supervised / loss,
        "export": size,
        "heads": model_facts(volume / directory, kind, directory).heads,
    }


def _load(directory: Path) -> Any:
    return model.load(
        directory,
        dtype=torch.float32,
        adapters=None,
        activation_checkpointing="None",
        zero3=None,
        seed=0,
    )


def _reference(directory: Path, config: TrainConfig, rows: Any) -> tuple[float, float]:
    """Gradient norm and mean loss of the same global batch by plain torch: eager attention, each document alone."""
    network = transformers.AutoModelForCausalLM.from_pretrained(directory, attn_implementation="eager")
    plan = training_plan(config, rows.lengths, packed=True)
    total, count = torch.zeros(()), 0
    for row in (row for pack in plan.sequences(0) for row in pack):
        batch = collate(MicroBatch([[row]]), rows, torch.device("cpu"), packed=False)
        logits = network(input_ids=batch.input_ids, use_cache=False).logits[0]
        total = total + torch.nn.functional.cross_entropy(
            logits, batch.targets[0], ignore_index=IGNORED, reduction="sum"
        )
        count += batch.supervised
    (total / count).backward()
    gradients = [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
    return float(torch.nn.utils.get_total_norm(gradients)), float(total.detach()) / count
