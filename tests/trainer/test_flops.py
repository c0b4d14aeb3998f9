"""Model FLOPs against torch's own counting of matrix products, and the table of peaks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import tiny
from sft_trainer import model as models
from sft_trainer import peak
from sft_trainer.batches import MicroBatch
from sft_trainer.collate import collate
from sft_trainer.config import ENV_PEAK_FLOPS, LoRA
from sft_trainer.flops import Work, work
from sft_trainer.laps import Laps
from sft_trainer.loss import supervised_loss


def network(folder: Path, adapters: LoRA | None = None) -> Any:
    return models.load(
        tiny.model(folder / "tiny"),
        dtype=torch.float32,
        adapters=adapters,
        activation_checkpointing="None",
        zero3=None,
        seed=1,
    )


def counted(model: Any, length: int) -> tuple[float, float, Any]:
    """What torch counts in matrix products, and in attention, of a forward and a backward pass."""

    class Rows:
        lengths = None

        def row(self, index: int) -> Any:
            import numpy as np

            return np.arange(length, dtype=np.int32), np.ones(length, np.float32)

    batch = collate(MicroBatch(((0,),)), Rows(), torch.device("cpu"), packed=True)
    counter = FlopCounterMode(display=False)
    with counter:
        supervised_loss(model, batch).backward()
    by_kind = {str(kind): float(value) for kind, value in counter.get_flop_counts()["Global"].items()}
    matrices = sum(value for kind, value in by_kind.items() if kind in ("aten.mm", "aten.addmm"))
    return matrices, sum(by_kind.values()) - matrices, batch


def test_matrices_of_a_full_training_are_counted_as_torch_counts_them(tmp_path: Path) -> None:
    model = network(tmp_path)
    matrices, _, batch = counted(model, 24)
    found = work(model)
    assert (batch.tokens, batch.supervised, batch.pairs) == (24, 23, 24 * 25 // 2)
    assert found.flops(batch.tokens, batch.supervised, 0) == matrices


def test_adapters_save_the_gradients_of_the_frozen_matrices(tmp_path: Path) -> None:
    adapters = LoRA(rank=4, alpha=8, dropout=0.0, target_modules=["AllLinear"])
    model = network(tmp_path, adapters)
    matrices, _, batch = counted(model, 24)
    found = work(model).flops(batch.tokens, batch.supervised, 0)
    # The first layer's input needs no gradient, which is not worth a rule.
    assert matrices <= found <= 1.1 * matrices


def test_attention_costs_twelve_per_layer_head_dimension_and_pair(tmp_path: Path) -> None:
    assert work(network(tmp_path)).per_pair == 12 * 2 * 2 * 16


def test_of_a_mixture_a_token_pays_for_the_experts_it_is_sent_to() -> None:
    from transformers import AutoModelForCausalLM, Qwen3MoeConfig

    sizes = {"hidden_size": 16, "intermediate_size": 32, "moe_intermediate_size": 8, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 8, "vocab_size": 32}

    def cost(experts: int) -> Work:
        config = Qwen3MoeConfig(**sizes, **heads, num_experts=experts, num_experts_per_tok=2)
        return work(AutoModelForCausalLM.from_config(config))

    router = 6 * 16
    assert cost(8).per_token - cost(4).per_token == 4 * router


@pytest.mark.parametrize(
    ("device", "precision", "tera"),
    [
        ("NVIDIA H200", "bf16", 989.4),
        ("NVIDIA H200 NVL", "bf16", 835),
        ("NVIDIA GH200 480GB", "bf16", 989.4),
        ("NVIDIA H100 80GB HBM3", "fp16", 989.4),
        ("NVIDIA H100 PCIe", "bf16", 756),
        ("NVIDIA A100-SXM4-80GB", "bf16", 312),
        ("NVIDIA A100-SXM4-40GB", "fp32", 19.5),
        ("NVIDIA L40S", "bf16", 362.05),
        ("NVIDIA L4", "bf16", 121),
        ("Tesla T4", "fp32", 8.1),
        ("Tesla T4", "bf16", None),
        ("NVIDIA A100-SXM4-80GB MIG 1g.10gb", "bf16", None),
        ("NVIDIA A1000", "bf16", None),
        ("Some GPU of the future", "bf16", None),
    ],
)
def test_peaks_are_those_of_the_data_sheets(device: str, precision: Any, tera: float | None) -> None:
    assert peak.listed(device, precision) == (None if tera is None else tera * 1e12)


def test_a_peak_that_is_told_counts_and_nonsense_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENV_PEAK_FLOPS, "5e12")
    assert peak.peak_flops("bf16") == 5e12
    for nonsense in ("much", "-1", "nan", "inf", ""):
        monkeypatch.setenv(ENV_PEAK_FLOPS, nonsense)
        if not torch.cuda.is_available():
            assert peak.peak_flops("bf16") is None


def test_laps_add_up_and_keep_their_order() -> None:
    laps = Laps(torch.device("cpu"))
    for phase in ("rank_wait", "forward", "backward", "forward", "optimizer"):
        laps.end(phase)
    seconds = laps.seconds()
    assert list(seconds) == ["rank_wait", "forward", "backward", "optimizer"]
    assert all(value >= 0 for value in seconds.values())
