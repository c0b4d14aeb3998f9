"""The summed cross entropy and its gradient are those of torch, in every chunking."""

from types import SimpleNamespace

import pytest
import torch

from sft_trainer import loss, softmax
from sft_trainer.collate import IGNORED, Batch
from sft_trainer.config import Loss
from sft_trainer.errors import UserError
from sft_trainer.softmax import Objective


def reference(hidden: torch.Tensor, head: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.cross_entropy((hidden @ head).float(), targets, reduction="sum")


@pytest.mark.parametrize("piece_bytes", [1, 4 * 11 * 3, 2**20], ids=["one row", "three rows", "all at once"])
def test_value_and_gradient_are_torchs(piece_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(softmax, "_PIECE_BYTES", {"cpu": piece_bytes})
    torch.manual_seed(0)
    hidden, targets = torch.randn(7, 5), torch.randint(0, 11, (7,))
    ours, theirs = torch.randn(5, 11, requires_grad=True), None
    theirs = ours.detach().clone().requires_grad_()
    value = loss.cross_entropy_sum(hidden @ ours, targets, Objective())
    expected = reference(hidden, theirs, targets)
    (value * 0.25).backward()
    (expected * 0.25).backward()
    assert value.detach() == pytest.approx(float(expected.detach()), rel=1e-6)
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_the_scale_is_not_rounded_to_the_type_of_the_logits() -> None:
    torch.manual_seed(0)
    table, targets = torch.randn(2000, 50), torch.randint(0, 50, (2000,))
    ours = table.bfloat16().requires_grad_()
    exact = ours.detach().double().requires_grad_()
    loss.cross_entropy_sum(ours, targets, Objective(1 / 3)).backward()  # 1/3 in bf16 is 0.2 % too large
    (torch.nn.functional.cross_entropy(exact, targets, reduction="sum") / 3).backward()
    assert ours.grad is not None
    assert exact.grad is not None
    ratio = float((ours.grad.double() * exact.grad).sum() / (exact.grad * exact.grad).sum())
    assert ratio == pytest.approx(1.0, abs=2e-4)


def test_values_that_another_operation_needs_are_left_alone() -> None:
    logits = torch.randn(3, 4, requires_grad=True)
    capped = torch.tanh(logits)  # needs its own result for its gradient
    targets = torch.tensor([0, 1, 2])
    loss.cross_entropy_sum(capped, targets, Objective()).backward()
    ours = logits.grad
    logits.grad = None
    torch.nn.functional.cross_entropy(torch.tanh(logits), targets, reduction="sum").backward()
    torch.testing.assert_close(ours, logits.grad)


def test_without_gradients_the_logits_stay_as_they_are() -> None:
    logits = torch.randn(3, 4)
    before = logits.clone()
    with torch.no_grad():
        value = loss.cross_entropy_sum(logits, torch.tensor([0, 1, 2]), Objective())
    assert torch.equal(logits, before)
    assert float(value) == pytest.approx(
        float(reference(torch.eye(3), before, torch.tensor([0, 1, 2]))), rel=1e-6
    )


def test_half_precision_logits_are_summed_in_full_precision() -> None:
    logits = torch.randn(300, 50)
    targets = torch.randint(0, 50, (300,))
    with torch.no_grad():
        value = loss.cross_entropy_sum(logits.bfloat16(), targets, Objective())
    expected = torch.nn.functional.cross_entropy(logits.bfloat16().double(), targets, reduction="sum")
    assert value.dtype == torch.float32
    assert float(value) == pytest.approx(float(expected), rel=1e-5)


class Model(torch.nn.Module):
    """Logits from a table of its own, at the positions asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.table = torch.nn.Parameter(torch.randn(10, 10))

    def forward(self, input_ids: torch.Tensor, logits_to_keep: torch.Tensor, **_: object) -> SimpleNamespace:
        return SimpleNamespace(logits=(torch.eye(10)[input_ids] @ self.table)[logits_to_keep])


def batch(targets: list[list[int]]) -> Batch:
    wanted = torch.tensor(targets)
    return Batch(
        input_ids=torch.arange(wanted.numel()).reshape(wanted.shape) % 10,
        targets=wanted,
        position_ids=None,
        attention_mask=None,
        tokens=wanted.numel(),
        padding=0,
        supervised=int((wanted != IGNORED).sum()),
    )


def test_only_supervised_positions_count_in_every_row() -> None:
    model, made = Model(), batch([[3, IGNORED, 4], [IGNORED, IGNORED, 5]])
    logits = model.table[made.input_ids].reshape(-1, 10)
    expected = torch.nn.functional.cross_entropy(
        logits, made.targets.reshape(-1), ignore_index=IGNORED, reduction="sum"
    )
    assert float(loss.supervised_loss(model, made).detach()) == pytest.approx(float(expected.detach()))


class Deaf(Model):
    """It takes whatever it is given, and passes over which logits are wanted."""

    def forward(self, input_ids: torch.Tensor, **_: object) -> SimpleNamespace:  # type: ignore[override]
        return SimpleNamespace(logits=torch.eye(10)[input_ids] @ self.table)


def test_a_model_that_answers_at_other_positions_is_refused() -> None:
    with pytest.raises(UserError, match="Deaf passes over logits_to_keep: .* 3 rows of logits where 2 were"):
        loss.supervised_loss(Deaf(), batch([[3, IGNORED, 4]]))


def test_a_batch_without_supervised_token_runs_the_model_and_moves_nothing() -> None:
    model = Model()
    value = loss.supervised_loss(model, batch([[IGNORED, IGNORED]]))
    value.backward()
    assert float(value.detach()) == 0.0
    assert model.table.grad is not None
    assert not model.table.grad.any()


@pytest.mark.parametrize(
    "extra", [{"label_smoothing": 0.1}, {"z_loss": 0.01}, {"label_smoothing": 0.2, "z_loss": 0.1}]
)
def test_what_is_added_is_in_the_gradient_and_the_value_stays_plain(extra: dict[str, float]) -> None:
    torch.manual_seed(0)
    ours, targets, weights = torch.randn(7, 11, requires_grad=True), torch.randint(0, 11, (7,)), torch.rand(7)
    theirs = ours.detach().clone().requires_grad_()
    value = loss.cross_entropy_sum(ours, targets, Objective(0.3, weights, **extra))
    value.backward()
    plain = torch.nn.functional.cross_entropy(theirs, targets, reduction="none")
    smooth = torch.nn.functional.cross_entropy(
        theirs, targets, reduction="none", label_smoothing=extra.get("label_smoothing", 0.0)
    )
    whole = smooth + extra.get("z_loss", 0.0) * theirs.logsumexp(-1) ** 2
    (0.3 * weights * whole).sum().backward()
    assert float(value.detach()) == pytest.approx(float((0.3 * weights * plain).sum().detach()), rel=1e-6)
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_the_model_is_trained_on_what_is_added() -> None:
    model, made = Model(), batch([[3, 4, 5]])
    extra = Loss(label_smoothing=0.5)
    loss.supervised_loss(model, made, extra=extra).backward()
    smoothed, model.table.grad = model.table.grad, None
    loss.supervised_loss(model, made).backward()
    assert smoothed is not None
    assert not torch.allclose(smoothed, model.table.grad)
