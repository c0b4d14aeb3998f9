"""bf16 on a CPU that has none: products computed in fp32 are no further from the truth, and nothing more is kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import gang
from kept_bytes import Watched
from sft_trainer import attention, head, precision, recompute, upcast
from sft_trainer.collate import IGNORED, Batch
from sft_trainer.config import Recompute
from sft_trainer.loss import supervised_loss

TOKENS = 48


@pytest.fixture(autouse=True)
def no_bf16_in_hardware(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "cpu_has_bf16", lambda: False)


def model() -> Any:
    """A Qwen2 of two layers, which has biases, with its weights in bf16."""
    torch.manual_seed(0)
    config = transformers.Qwen2Config(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=100,
        tie_word_embeddings=False,
        attn_implementation="sdpa",
    )
    return transformers.AutoModelForCausalLM.from_config(config).to(torch.bfloat16).train()


def gradients(network: Any) -> dict[str, torch.Tensor]:
    """Of the loss of two documents in a pack, as it is trained on."""
    attention.use_per_document(network)
    head.install(network)
    ids = torch.randint(0, 100, (1, TOKENS), generator=torch.Generator().manual_seed(1))
    targets = torch.full_like(ids, IGNORED)
    targets[:, :-1] = ids[:, 1:]
    positions = torch.cat([torch.arange(20), torch.arange(TOKENS - 20)])[None]
    batch = Batch(ids, targets, positions, None, tokens=TOKENS, padding=0, supervised=TOKENS - 1)
    supervised_loss(network, batch, 1 / TOKENS).backward()
    return {name: p.grad.float() for name, p in network.named_parameters() if p.grad is not None}


def distance(found: dict[str, torch.Tensor], true: dict[str, torch.Tensor]) -> float:
    assert found.keys() == true.keys()
    return sum(float((found[name] - true[name]).norm() / true[name].norm()) for name in true) / len(true)


@pytest.mark.parametrize("recomputed", ["None", "Selective", "Full"])
def test_gradients_are_no_further_from_those_of_fp32_than_emulated_ones(
    monkeypatch: pytest.MonkeyPatch, recomputed: Recompute
) -> None:
    true = gradients(model().float())
    upcasting = model()
    upcast.enable(upcasting)
    recompute.enable(upcasting, recomputed)
    found = gradients(upcasting)
    monkeypatch.setattr(precision, "cpu_has_bf16", lambda: True)
    emulated = gradients(model())
    assert 0 < distance(found, true) < 1.05 * distance(emulated, true)


def forward(network: Any, recomputed: Recompute) -> tuple[Watched, torch.Tensor]:
    """Of three documents in a pack."""
    attention.use_per_document(network)
    recompute.enable(network, recomputed)
    ids = torch.zeros(1, TOKENS, dtype=torch.int64)
    positions = torch.arange(TOKENS // 3).repeat(3)[None]
    with Watched() as watched:
        logits = network(input_ids=ids, position_ids=positions, use_cache=False).logits
    return watched, logits


@pytest.mark.parametrize("trained", ["all", "some"])
@pytest.mark.parametrize("recomputed", ["None", "Selective", "Full"])
def test_no_more_is_kept_for_the_backward_pass(
    monkeypatch: pytest.MonkeyPatch, recomputed: Recompute, trained: str
) -> None:
    def held(network: Any) -> int:
        if trained == "some":
            for name, parameter in network.named_parameters():
                parameter.requires_grad_("q_proj" in name)
        watched, logits = forward(network, recomputed)
        assert logits.requires_grad
        return watched.held(network)

    upcasting = model()
    upcast.enable(upcasting)
    found = held(upcasting)
    monkeypatch.setattr(precision, "cpu_has_bf16", lambda: True)
    # Selective checkpointing keeps the results of attention [TOKENS, 64] in two layers, and those in fp32.
    wider = 2 * TOKENS * 64 * 2 if recomputed == "Selective" else 0
    assert 0 < found <= held(model()) + wider


@pytest.mark.parametrize(("recomputed", "times"), [("None", 1), ("Selective", 1), ("Full", 2)])
def test_linear_layers_are_computed_again_with_full_checkpointing_only(
    recomputed: Recompute, times: int
) -> None:
    network = model()
    upcast.enable(network)
    watched, logits = forward(network, recomputed)
    ahead = watched.ran.count(upcast.LINEAR)
    assert ahead == 2 * 7 + 1, "seven linear layers in each of two, and the output layer"
    with Watched() as again:
        logits.sum().backward()
    assert again.ran.count(upcast.LINEAR) == (times - 1) * 2 * 7


def test_a_layer_computes_in_fp32_and_rounds_once() -> None:
    layer: Any = torch.nn.Sequential(torch.nn.Linear(64, 8)).to(torch.bfloat16)
    upcast.enable(layer)
    rows = torch.randn(5, 64, dtype=torch.bfloat16, generator=torch.Generator().manual_seed(0))
    assert type(layer[0]) is upcast.UpcastLinear
    wide = torch.nn.functional.linear(rows.float(), layer[0].weight.float(), layer[0].bias.float())
    assert torch.equal(layer(rows), wide.to(torch.bfloat16))


@pytest.mark.parametrize("shape", [(64,), (5, 64), (2, 3, 64), (0, 64), (2, 0, 64)])
def test_a_layer_takes_what_any_other_does(shape: tuple[int, ...]) -> None:
    layer: Any = torch.nn.Sequential(torch.nn.Linear(64, 8)).to(torch.bfloat16)
    upcast.enable(layer)
    rows = torch.ones(shape, dtype=torch.bfloat16, requires_grad=True)
    layer(rows).sum().backward()
    assert rows.grad is not None
    assert rows.grad.shape == rows.shape
    assert layer[0].weight.grad.shape == (8, 64)


def test_frozen_weights_get_no_gradient_and_inputs_do() -> None:
    layer: Any = torch.nn.Sequential(torch.nn.Linear(8, 4)).to(torch.bfloat16).requires_grad_(False)
    upcast.enable(layer)
    rows = torch.ones(3, 5, 8, dtype=torch.bfloat16, requires_grad=True)
    output = layer(rows)
    output.sum().backward()
    assert (output.dtype, output.shape) == (torch.bfloat16, (3, 5, 4))
    assert layer[0].weight.grad is None
    assert rows.grad is not None
    assert rows.grad.shape == rows.shape


def test_a_cpu_with_bf16_and_other_formats_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    wide = torch.nn.Sequential(torch.nn.Linear(2, 2))
    upcast.enable(wide)
    assert type(wide[0]) is torch.nn.Linear
    monkeypatch.setattr(precision, "cpu_has_bf16", lambda: True)
    narrow = torch.nn.Sequential(torch.nn.Linear(2, 2)).to(torch.bfloat16)
    upcast.enable(narrow)
    assert type(narrow[0]) is torch.nn.Linear


def train_where_no_cpu_has_bf16() -> int:
    precision.cpu_has_bf16 = lambda: False  # type: ignore[assignment]
    enable, swapped = upcast.enable, []

    def seen(network: Any) -> None:
        enable(network)
        swapped.extend(module for module in network.modules() if isinstance(module, upcast.UpcastLinear))

    upcast.enable = seen
    code = gang.train()
    print(f"upcast layers: {len(swapped)}")
    return code


@pytest.mark.processes
def test_a_training_in_bf16_computes_its_layers_so(tmp_path: Path) -> None:
    changes = {"training__precision": "bf16"}
    made = gang.Job(tmp_path, ranks=1, changes=changes, rank=train_where_no_cpu_has_bf16)
    ended = made.run()
    assert ended.codes == [0], ended.output
    assert "upcast layers: 14" in ended.output, "seven in each of two layers; the loss head is another"
