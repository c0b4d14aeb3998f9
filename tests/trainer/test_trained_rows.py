"""With LoRA the rows of added tokens are trained in embedding and head, and nothing else of either."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file

import gang
import tiny
from sft_trainer import head, lora, vocabulary
from sft_trainer.config import LoRA, TokenRange
from sft_trainer.errors import UserError
from sft_trainer.softmax import Objective

FIRST, ADDED = 256, TokenRange(first=256, count=2)
ADAPTERS = LoRA(rank=2, alpha=4, dropout=0.0, target_modules=["AllLinear"])


def model(folder: Path, *, tied: bool) -> Any:
    config = json.loads((tiny.model(folder / "tiny") / "config.json").read_text())
    torch.manual_seed(0)
    return transformers.AutoModelForCausalLM.from_config(
        transformers.AutoConfig.for_model(**{**config, "tie_word_embeddings": tied})
    )


@pytest.mark.parametrize("tied", [True, False])
def test_the_loss_by_chunks_has_the_gradient_of_the_logits(
    tied: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapted = lora.add(model(tmp_path, tied=tied), ADAPTERS, ADDED)
    trained = {name: p for name, p in adapted.named_parameters() if "trainable_tokens" in name}
    assert len(trained) == (1 if tied else 2)
    ids = torch.tensor([[1, 257, 3, 256, 5, 6]])
    targets = torch.tensor([257, 3, 256, 5, 6, 257])

    def gradients(loss: torch.Tensor) -> list[torch.Tensor]:
        adapted.zero_grad()
        loss.backward()
        return [p.grad.clone() for p in trained.values() if p.grad is not None]

    plain = torch.nn.functional.cross_entropy(adapted(input_ids=ids).logits[0], targets, reduction="sum")
    expected = gradients(plain)
    monkeypatch.setattr(head, "_CHUNK_BYTES", {"cpu": 4 * 258 * 3})
    assert head.install(adapted)
    with head.answering(adapted, targets, Objective()) as asked:
        assert asked
        hidden = adapted.base_model.model.model(input_ids=ids).last_hidden_state[0]
        loss = adapted.get_output_embeddings()(hidden)
    torch.testing.assert_close(loss.sum(), plain, rtol=1e-5, atol=1e-6)
    for one, other in zip(gradients(loss.sum()), expected, strict=True):
        assert one.shape == (2, 32)
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
    head.uninstall(adapted)
    assert adapted(input_ids=ids).logits.shape == (1, 6, 258)


def test_a_head_with_a_bias_is_refused(tmp_path: Path) -> None:
    biased = model(tmp_path, tied=False)
    biased.lm_head = torch.nn.Linear(32, 258, bias=True)
    with pytest.raises(UserError, match="has a bias") as caught:
        lora.add(biased, ADAPTERS, ADDED)
    assert caught.value.reason == "AddedTokensUnsupported"


@pytest.mark.processes
def test_a_resumed_run_exports_adapters_and_a_model_that_know_the_tokens(tmp_path: Path) -> None:
    volume = tmp_path / "volume"
    base = vocabulary.extend(tiny.model(volume / "models" / "tiny", hidden=64), ["<|tool|>"], volume)
    assert base.tokens is not None
    rows = gang.token_rows(40, seed=1)
    for row in rows:
        row.ids[0] = row.ids[-1] = base.tokens.first  # type: ignore[index]
    gang.write_cache(volume / "cache", rows, gang.token_rows(6, seed=2))
    changes = {
        "model__directory": base.directory.relative_to(volume).as_posix(),
        "model__addedTokens": {"first": base.tokens.first, "count": 1},
        "training__method": "LoRA",
        "training__learningRate": 1e-2,
        "training__lora": json.loads(ADAPTERS.to_json()),
        "training__maxSteps": 4,
        "checkpoint__periodSteps": 2,
        "export__format": "Both",
    }
    job = gang.Job(volume, changes=changes)
    ended = job.run()
    assert ended.codes == [0, 0], ended.output
    assert "loss by chunks of positions" in ended.output
    first = load_file(job.folder / "export" / "model.safetensors")
    next((job.folder / "checkpoints" / "step-4").rglob("*model_states.pt")).unlink()
    again = job.run(attempt=2)
    assert again.outcomes[0].resumed_from_step == 2  # type: ignore[union-attr]
    exported = load_file(job.folder / "export" / "model.safetensors")
    assert all(torch.equal(exported[name], first[name]) for name in first)
    before = load_file(base.directory / "model.safetensors")["model.embed_tokens.weight"]
    after = exported["model.embed_tokens.weight"]
    assert torch.equal(after[:-1], before[:-1])
    assert not torch.equal(after[-1], before[-1])
    import peft

    whole = transformers.AutoModelForCausalLM.from_pretrained(str(job.folder / "export"))
    adapted = peft.PeftModel.from_pretrained(
        transformers.AutoModelForCausalLM.from_pretrained(str(base.directory)),
        str(job.folder / "export" / "adapter"),
    )
    ids = torch.tensor([[5, base.tokens.first, 7]])
    torch.testing.assert_close(adapted(input_ids=ids).logits, whole(ids).logits, rtol=1e-4, atol=1e-5)
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(job.folder / "export"))
    assert tokenizer("<|tool|>", add_special_tokens=False)["input_ids"] == [base.tokens.first]
