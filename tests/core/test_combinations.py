"""What cannot work together is refused with reason and fix, and the planner never chooses it."""

from __future__ import annotations

from pathlib import Path

import pytest

from sftjob_operator.planning import combinations
from sftjob_operator.policy.accept import objection, read_sftjob
from sftjob_operator.settings import Settings
from worlds import sftjob

GPU, CPU = {"nodes": 1, "gpusPerNode": 2}, {"nodes": 1, "gpusPerNode": 0, "processesPerNode": 2}
MUON = {"optimizer": {"type": "Muon"}}
DOCUMENT = (Path(__file__).resolve().parents[2] / "docs" / "planning.md").read_text()

# Of every row: what meets it, and what is next to it and works.
CASES = {
    "model.attention FlashAttention and workers.gpusPerNode 0": (
        {"workers": CPU, "model": {"path": "models/tiny", "attention": "FlashAttention"}},
        {"workers": CPU, "model": {"path": "models/tiny", "attention": "SDPA"}},
    ),
    "model.attention Eager and deepspeed.sequenceParallelSize above 1": (
        {
            "workers": GPU,
            "model": {"path": "models/tiny", "attention": "Eager"},
            "deepspeed": {"sequenceParallelSize": 2},
        },
        {
            "workers": GPU,
            "model": {"path": "models/tiny", "attention": "SDPA"},
            "deepspeed": {"sequenceParallelSize": 2},
        },
    ),
    "deepspeed.tensorParallelSize above 1 and deepspeed.sequenceParallelSize above 1": (
        {"workers": GPU, "deepspeed": {"tensorParallelSize": 2, "sequenceParallelSize": 2}},
        {"workers": GPU, "deepspeed": {"tensorParallelSize": 2, "sequenceParallelSize": 1}},
    ),
    "deepspeed.tensorParallelSize above 1 and deepspeed.zeroStage 0 or 3": (
        {"workers": GPU, "deepspeed": {"tensorParallelSize": 2, "zeroStage": 3}},
        {"workers": GPU, "deepspeed": {"tensorParallelSize": 2, "zeroStage": 2}},
    ),
    "deepspeed.tensorParallelSize above 1 and deepspeed.activationCheckpointing Selective": (
        {"workers": GPU, "deepspeed": {"tensorParallelSize": 2, "activationCheckpointing": "Selective"}},
        {"workers": GPU, "deepspeed": {"tensorParallelSize": 2, "activationCheckpointing": "Full"}},
    ),
    "deepspeed.tensorParallelSize above 1 and training.method LoRA or QLoRA": (
        {"workers": GPU, "deepspeed": {"tensorParallelSize": 2}, "training": {"method": "LoRA"}},
        {"workers": GPU, "deepspeed": {"tensorParallelSize": 2}, "training": {"method": "Full"}},
    ),
    "deepspeed.tensorParallelSize above 1 and training.optimizer.type Muon": (
        {"workers": GPU, "deepspeed": {"tensorParallelSize": 2}, "training": MUON},
        {"workers": GPU, "deepspeed": {"tensorParallelSize": 1}, "training": MUON},
    ),
    "deepspeed.tensorParallelSize above 1 and training.masterWeights BF16StochasticRounding": (
        {
            "workers": GPU,
            "deepspeed": {"tensorParallelSize": 2},
            "training": {"masterWeights": "BF16StochasticRounding"},
        },
        {"workers": GPU, "deepspeed": {"tensorParallelSize": 2}, "training": {"masterWeights": "BF16"}},
    ),
    "deepspeed.tensorParallelSize above 1 and deepspeed.offloadOptimizer or offloadParameters CPU": (
        {"workers": GPU, "deepspeed": {"tensorParallelSize": 2, "offloadOptimizer": "CPU"}},
        {"workers": GPU, "deepspeed": {"tensorParallelSize": 2, "offloadOptimizer": "None"}},
    ),
    "model.attention FlashAttention and training.precision fp32": (
        {
            "workers": GPU,
            "model": {"path": "models/tiny", "attention": "FlashAttention"},
            "training": {"precision": "fp32"},
        },
        {"workers": GPU, "model": {"path": "models/tiny", "attention": "FlashAttention"}},
    ),
    "training.precision fp16 and workers.gpusPerNode 0": (
        {"workers": CPU, "training": {"precision": "fp16"}},
        {"workers": GPU, "training": {"precision": "fp16"}},
    ),
    "training.precision fp16 and deepspeed.zeroStage 0": (
        {"workers": GPU, "training": {"precision": "fp16"}, "deepspeed": {"zeroStage": 0}},
        {"workers": GPU, "training": {"precision": "fp16"}, "deepspeed": {"zeroStage": 1}},
    ),
    "deepspeed.offloadOptimizer CPU and deepspeed.zeroStage 0": (
        {"deepspeed": {"offloadOptimizer": "CPU", "zeroStage": 0}},
        {"deepspeed": {"offloadOptimizer": "None", "zeroStage": 0}},
    ),
    "deepspeed.offloadParameters CPU and deepspeed.zeroStage 0, 1 or 2": (
        {"deepspeed": {"config": {"zero_optimization": {"stage": 2, "offload_param": {"device": "cpu"}}}}},
        {"deepspeed": {"offloadParameters": "CPU", "zeroStage": 3}},
    ),
    "training.lora.variant DoRA and deepspeed.zeroStage 3 or deepspeed.offloadParameters CPU": (
        {
            "training": {"method": "LoRA", "lora": {"variant": "DoRA"}},
            "deepspeed": {"config": {"zero_optimization": {"stage": 3}}},
        },
        {"training": {"method": "LoRA", "lora": {"variant": "DoRA"}}, "deepspeed": {"zeroStage": 2}},
    ),
    "training.method QLoRA and deepspeed.zeroStage 3 or deepspeed.offloadParameters CPU": (
        {"training": {"method": "QLoRA"}, "deepspeed": {"zeroStage": 3}},
        {"training": {"method": "QLoRA"}, "deepspeed": {"zeroStage": 2}},
    ),
    "model.addTokens with training.method LoRA and deepspeed.zeroStage 3 or deepspeed.offloadParameters CPU": (
        {
            "model": {"path": "models/m", "addTokens": ["<|tool|>"]},
            "training": {"method": "LoRA"},
            "deepspeed": {"zeroStage": 3},
        },
        {"model": {"path": "models/m", "addTokens": ["<|tool|>"]}, "deepspeed": {"zeroStage": 3}},
    ),
    "training.optimizer.type Muon and deepspeed.zeroStage 1, 2 or 3": (
        {"training": MUON, "deepspeed": {"zeroStage": 1}},
        {"training": MUON, "deepspeed": {"zeroStage": 0}},
    ),
    "training.optimizer.type Muon and deepspeed.offloadOptimizer or offloadParameters CPU": (
        {"training": MUON, "deepspeed": {"offloadOptimizer": "CPU"}},
        {"training": MUON, "deepspeed": {"offloadOptimizer": "None"}},
    ),
    "training.optimizer.type Muon and training.method LoRA or QLoRA": (
        {"training": {**MUON, "method": "LoRA"}},
        {"training": {"method": "LoRA"}},
    ),
    "training.optimizer.type Muon and training.precision fp16": (
        {"workers": GPU, "training": {**MUON, "precision": "fp16"}},
        {"workers": GPU, "training": {**MUON, "precision": "bf16"}},
    ),
    "training.optimizer.type Muon and training.masterWeights BF16 or BF16StochasticRounding": (
        {"training": {**MUON, "masterWeights": "BF16"}},
        {"training": {**MUON, "masterWeights": "FP32"}},
    ),
    "training.masterWeights BF16 or BF16StochasticRounding and training.precision fp16 or fp32": (
        {"training": {"masterWeights": "BF16"}, "deepspeed": {"config": {"bf16": {"enabled": False}}}},
        {"training": {"masterWeights": "BF16"}},
    ),
    "training.masterWeights BF16 or BF16StochasticRounding and deepspeed.zeroStage 0 or 1": (
        {"training": {"masterWeights": "BF16StochasticRounding"}, "deepspeed": {"zeroStage": 1}},
        {"training": {"masterWeights": "BF16StochasticRounding"}, "deepspeed": {"zeroStage": 2}},
    ),
    "training.masterWeights BF16 or BF16StochasticRounding and deepspeed.offloadOptimizer or offloadParameters CPU": (
        {"training": {"masterWeights": "BF16"}, "deepspeed": {"offloadOptimizer": "CPU"}},
        {"training": {"masterWeights": "BF16"}, "deepspeed": {"offloadOptimizer": "None"}},
    ),
    "deepspeed.config.zero_optimization.zero_hpz_partition_size and any zeroStage but 3": (
        {"workers": GPU, "deepspeed": {"config": {"zero_optimization": {"zero_hpz_partition_size": 2}}}},
        {"workers": GPU, "deepspeed": {"config": {"zero_optimization": {"zero_hpz_partition_size": 1}}}},
    ),
    "deepspeed.config.zero_optimization.zero_hpz_partition_size and a number of ranks that it does not divide": (
        {
            "workers": GPU,
            "deepspeed": {"config": {"zero_optimization": {"stage": 3, "zero_hpz_partition_size": 3}}},
        },
        {
            "workers": GPU,
            "deepspeed": {"config": {"zero_optimization": {"stage": 3, "zero_hpz_partition_size": 2}}},
        },
    ),
    "deepspeed.config.zero_optimization.zero_quantized_* and any zeroStage but 3, or workers.gpusPerNode 0": (
        {
            "workers": CPU,
            "deepspeed": {"config": {"zero_optimization": {"stage": 3, "zero_quantized_weights": True}}},
        },
        {
            "workers": GPU,
            "deepspeed": {"config": {"zero_optimization": {"stage": 3, "zero_quantized_weights": True}}},
        },
    ),
}


@pytest.mark.parametrize("row", combinations.ROWS, ids=lambda row: row.together)
def test_a_combination_that_cannot_work_is_refused_and_its_neighbour_is_not(row):
    meets, works = CASES[row.together]
    found = objection(read_sftjob(sftjob(**meets)), Settings())
    assert found is not None
    assert found.reason == "CombinationUnsupported"
    assert found.message == f"{row.together} exclude each other: {row.reason}; {row.fix}"
    assert objection(read_sftjob(sftjob(**works)), Settings()) is None


def test_the_document_shows_the_table():
    assert combinations.table() in DOCUMENT
