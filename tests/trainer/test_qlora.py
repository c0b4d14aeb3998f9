"""QLoRA: a base in four bits that learns through adapters, and exports which are what was trained."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import gang
import tiny
from sft_trainer import model, quantise
from sft_trainer.errors import UserError

ADAPTERS = {"rank": 4, "alpha": 8, "dropout": 0.0, "targetModules": ["AllLinear"]}
QLORA: dict[str, Any] = {
    "training__method": "QLoRA",
    "training__lora": ADAPTERS,
    "training__learningRate": 1e-2,
    "training__maxSteps": 6,
    "checkpoint__periodSteps": 2,
    "export__format": "Both",
}


def nf4(weight: torch.Tensor) -> torch.Tensor:
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    packed, state = quantize_4bit(weight, compress_statistics=True, quant_type="nf4")
    return dequantize_4bit(packed, state)


def test_without_bitsandbytes_the_job_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(UserError, match=r"needs bitsandbytes.*set training\.method: LoRA") as caught:
        quantise.settings(torch.float32)
    assert caught.value.reason == "QLoRAUnavailable"


def test_linear_layers_are_in_four_bits_and_nothing_else(tmp_path: Path) -> None:
    folder = tiny.model(tmp_path / "tiny", hidden=64)
    loaded = model.load(
        folder,
        dtype=torch.float32,
        adapters=None,
        quantised=True,
        activation_checkpointing="None",
        zero3=None,
        seed=1,
    )
    whole, packed = load_file(folder / "model.safetensors"), quantise.dequantised(loaded)
    assert {name for name in whole if whole[name].dim() == 2 and "embed" not in name} == packed.keys()
    for name, weight in packed.items():
        assert torch.equal(weight, nf4(whole[name]))
    assert model.counts(loaded)[0] == sum(tensor.numel() for tensor in whole.values())


@pytest.mark.processes
@pytest.mark.parametrize(
    ("stage", "precision"),
    [
        (2, "bf16"),
        pytest.param(0, "fp32", marks=pytest.mark.soak),
        pytest.param(1, "fp32", marks=pytest.mark.soak),
    ],
)
def test_it_learns_resumes_bit_for_bit_and_merges_the_dequantised_base(
    stage: int, precision: str, tmp_path: Path
) -> None:
    changes = QLORA | {"deepspeed__zeroStage": stage, "training__precision": precision}
    job = gang.Job(tmp_path / "volume", changes=changes)
    ended = job.run()
    assert ended.codes == [0, 0], ended.output
    curve, adapter = job.curve(), job.folder / "export" / "adapter" / "adapter_model.safetensors"
    assert curve[6] < curve[1] - 0.1
    first = load_file(adapter)
    saved = next((job.folder / "checkpoints" / "step-4").rglob("*model_states.pt"))
    assert not any(".weight." in key for key in torch.load(saved, weights_only=False)["module"]), "constants"
    next((job.folder / "checkpoints" / "step-6").rglob("*model_states.pt")).unlink()
    again = job.run(attempt=2)
    assert again.outcomes[0].resumed_from_step == 4, again.output  # type: ignore[union-attr]
    assert job.curve() == curve
    trained = load_file(adapter)
    assert all(torch.equal(trained[name], first[name]) for name in first)

    base = load_file(job.volume / "models" / "tiny" / "model.safetensors")
    merged = load_file(job.folder / "export" / "model.safetensors")
    name = "model.layers.1.mlp.up_proj"
    a, b = (trained[f"base_model.model.{name}.lora_{side}.weight"].float() for side in "AB")
    kind = torch.bfloat16 if precision == "bf16" else torch.float32
    expected = nf4(base[f"{name}.weight"].to(kind)).float() + 8 / 4 * b @ a
    torch.testing.assert_close(merged[f"{name}.weight"].float(), expected, atol=1e-5, rtol=1e-4)
    assert torch.equal(merged["model.embed_tokens.weight"], base["model.embed_tokens.weight"])
    settings = json.loads((job.folder / "export" / "config.json").read_text())
    assert "quantization_config" not in settings
