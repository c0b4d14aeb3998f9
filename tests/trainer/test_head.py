"""Loss and gradients of an output layer that is asked for them are torch's, in every chunking and setting."""

import subprocess
import sys
from typing import Any

import pytest
import torch
import transformers

from sft_trainer import head
from sft_trainer.collate import IGNORED, Batch
from sft_trainer.loss import supervised_loss
from sft_trainer.selfcheck import use_loss_head
from sft_trainer.softmax import Objective

ROWS, HIDDEN, VOCABULARY = 13, 6, 11


def tensors(
    dtype: torch.dtype = torch.float32,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    hidden, weight, bias = torch.randn(ROWS, HIDDEN), torch.randn(VOCABULARY, HIDDEN), torch.randn(VOCABULARY)
    made = (tensor.to(dtype).requires_grad_() for tensor in (hidden, weight, bias))
    return *made, torch.randint(0, VOCABULARY, (ROWS,))  # type: ignore[return-value]


def reference(hidden: Any, weight: Any, bias: Any, targets: Any, weights: Any = None) -> torch.Tensor:
    losses = torch.nn.functional.cross_entropy(hidden @ weight.T + bias, targets, reduction="none")
    return (losses * (1.0 if weights is None else weights)).sum()


@pytest.mark.parametrize("rows", [1, 5, 1000], ids=["one position", "three chunks", "all at once"])
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weights"])
def test_value_and_gradients_are_torchs(rows: int, weighted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head, "_CHUNK_BYTES", {"cpu": rows * VOCABULARY * 4})
    weights = torch.rand(ROWS) if weighted else None
    ours, theirs = tensors(), tensors()
    value = head.linear_cross_entropy(*ours, Objective(0.3, weights))
    expected = 0.3 * reference(*theirs, weights)
    (value * 0.25).backward()
    (expected * 0.25).backward()
    assert float(value.detach()) == pytest.approx(float(expected.detach()), rel=1e-6)
    for mine, other in zip(ours[:3], theirs[:3], strict=True):
        torch.testing.assert_close(mine.grad, other.grad)


def test_a_frozen_head_gets_no_gradient_and_hidden_states_the_same() -> None:
    (hidden, weight, bias, targets), theirs = tensors(), tensors()
    head.linear_cross_entropy(hidden, weight.detach(), bias.detach(), targets, Objective()).backward()
    reference(*theirs).backward()
    torch.testing.assert_close(hidden.grad, theirs[0].grad)
    assert weight.grad is None


def test_half_precision_chunks_add_up_in_full_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against fp32: no worse with many chunks than with one, where a bf16 sum loses a digit."""

    def error(rows: int) -> float:
        monkeypatch.setattr(head, "_CHUNK_BYTES", {"cpu": rows * 50 * 2})
        torch.manual_seed(0)
        hidden, weight = torch.randn(4000, 32).bfloat16(), torch.randn(50, 32).bfloat16().requires_grad_()
        exact, targets = weight.detach().double().requires_grad_(), torch.randint(0, 50, (4000,))
        head.linear_cross_entropy(hidden, weight, None, targets, Objective(1 / 3)).backward()
        (reference(hidden.double(), exact, torch.zeros(50), targets) / 3).backward()
        assert weight.grad is not None
        assert exact.grad is not None
        return float((weight.grad - exact.grad).norm() / exact.grad.norm())

    assert error(rows=40) < 1.5 * error(rows=4000) < 5e-3


def test_a_tiny_scale_does_not_underflow_before_it_meets_the_loss_scale() -> None:
    (hidden, weight, bias, targets), theirs = tensors(torch.float16), tensors(torch.float16)
    scale = 2.0**-24
    (head.linear_cross_entropy(hidden, weight, bias, targets, Objective(scale)) / scale).backward()
    reference(*(tensor.float() if tensor.is_floating_point() else tensor for tensor in theirs)).backward()
    torch.testing.assert_close(weight.grad, theirs[1].grad, rtol=2e-2, atol=2e-2)


class World:
    is_first, device = True, torch.device("cpu")

    def sum(self, values: list[float]) -> list[float]:
        return values


class Rows:
    lengths = torch.tensor([20]).numpy()

    def row(self, index: int) -> tuple[Any, Any]:
        return torch.arange(20).numpy(), torch.ones(20, dtype=torch.bool).numpy()


def network(kind: str = "llama", **more: Any) -> Any:
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(
        kind,
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=16,
        **more,
    )
    for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
        setattr(config, name, 0)
    return transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")


def batch(supervised: bool = True) -> Batch:
    ids = torch.arange(24).reshape(2, 12)
    targets = torch.where(ids % 3 == 0, ids + 1, IGNORED) if supervised else torch.full_like(ids, IGNORED)
    return Batch(ids, targets, None, None, tokens=24, padding=0, supervised=int((targets != IGNORED).sum()))


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_a_plain_head_is_asked_and_the_model_gets_the_same_gradients(tied: bool) -> None:
    model = network(tie_word_embeddings=tied)
    expected = supervised_loss(model, batch(), 0.1)
    expected.backward()
    gradients = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    assert use_loss_head(model, Rows(), World())  # type: ignore[arg-type]
    value = supervised_loss(model, batch(), 0.1)
    value.backward()
    assert float(value.detach()) == pytest.approx(float(expected.detach()), rel=1e-6)
    for parameter, other in zip(model.parameters(), gradients, strict=True):
        torch.testing.assert_close(parameter.grad, other)


@pytest.mark.parametrize(
    ("kind", "setting"),
    [
        ("gemma2", {"final_logit_softcapping": 3.0}),
        ("cohere", {"logit_scale": 0.25}),
        ("granite", {"logits_scaling": 4.0}),
    ],
    ids=["capped", "multiplied", "divided"],
)
def test_a_head_that_does_more_is_left_alone_and_said(
    kind: str, setting: dict[str, float], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    model = network(kind, **setting)
    assert not use_loss_head(model, Rows(), World())  # type: ignore[arg-type]
    assert type(model.get_output_embeddings()) is torch.nn.Linear
    assert "this head is not plain" in caplog.text


def test_one_rank_that_sees_a_difference_decides_for_all() -> None:
    class Others(World):
        def sum(self, values: list[float]) -> list[float]:
            return [values[0] + 1]

    assert not use_loss_head(network(), Rows(), Others())  # type: ignore[arg-type]


def test_a_batch_without_supervised_token_runs_the_head_and_moves_nothing() -> None:
    model = network()
    assert head.install(model)
    value = supervised_loss(model, batch(supervised=False))
    value.backward()
    assert float(value.detach()) == 0.0
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters())


def test_logits_are_logits_again_afterwards_and_evaluation_gives_the_same_loss() -> None:
    model, made = network(), batch()
    expected = model(input_ids=made.input_ids).logits
    assert head.install(model)
    training = supervised_loss(model, made).detach()
    with torch.no_grad():
        assert float(supervised_loss(model, made)) == pytest.approx(float(training), rel=1e-6)
    assert torch.equal(model(input_ids=made.input_ids).logits, expected)


PEAK = """
import pathlib, sys, torch
from sft_trainer import head
from sft_trainer.loss import cross_entropy_sum
from sft_trainer.softmax import Objective
hidden, weight = torch.randn(4096, 32, requires_grad=True), torch.randn(150_000, 32, requires_grad=True)
targets = torch.randint(0, 150_000, (4096,))
(torch.randn(64, 32) @ torch.randn(32, 64)).sum()
def peak():  # getrusage would tell the highest of the parent too: it is kept over exec
    return int(pathlib.Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
before = peak()
if sys.argv[1] == "chunks":
    loss = head.linear_cross_entropy(hidden, weight, None, targets, Objective())
else:
    loss = cross_entropy_sum(hidden @ weight.T, targets, Objective())
loss.backward()
print((peak() - before) / 2**10)
"""


def peak_megabytes(way: str) -> float:
    run = subprocess.run([sys.executable, "-c", PEAK, way], capture_output=True, text=True, check=True)
    return float(run.stdout)


@pytest.mark.processes
def test_a_vocabulary_of_150k_at_length_4096_takes_a_chunk_and_not_the_whole() -> None:
    """The chunk is 256 MiB; fp32 gradients of the head take 18 MiB each, and there are up to three for a moment."""
    assert peak_megabytes("chunks") < 256 + 3 * 18 + 60
    assert peak_megabytes("all at once") > 1500
