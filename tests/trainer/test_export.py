"""The exported folder is the trained model, for everyone who loads it."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import gang
import tiny
from sft_trainer import chat, companions, layout
from sft_trainer import export as exports
from sft_trainer.checkpoint import fence
from sft_trainer.checkpoint.commit import Store
from sft_trainer.checkpoint.fence import Fence
from sft_trainer.config import ChatTemplate as ChatTemplateSource
from sft_trainer.config import ExitCode
from sft_trainer.data.template import ChatTemplate
from sft_trainer.data.tokenizer import Tokenizer
from sft_trainer.errors import Fenced, UserError
from sft_trainer.layout import JobFolder

pytestmark = pytest.mark.processes

LORA: dict[str, Any] = {
    "training__method": "LoRA",
    "training__learningRate": 1e-2,
    "training__lora": {"rank": 4, "alpha": 8, "dropout": 0.1, "targetModules": ["AllLinear"]},
}
COMMIT = "0123456789abcdef" * 2 + "01234567"
SHORT: dict[str, Any] = {"training__maxSteps": 4, "checkpoint__periodSteps": 2}


def loaded(folder: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(folder)


def differs(one: Any, other: Any) -> bool:
    mine, theirs = one.state_dict(), other.state_dict()
    assert mine.keys() == theirs.keys()
    return any(not torch.equal(mine[name], theirs[name]) for name in mine)


@pytest.mark.parametrize(
    "changes",
    [
        {"deepspeed__zeroStage": 3},
        {"deepspeed__zeroStage": 3, "training__precision": "bf16"},
        {"deepspeed__zeroStage": 2} | LORA,
        {"deepspeed__zeroStage": 3, "deepspeed__activationCheckpointing": "Full"} | LORA,
        {"deepspeed__zeroStage": 1, "training__precision": "bf16"} | LORA,
    ],
    ids=[
        "full, ZeRO-3",
        "full, ZeRO-3, bf16",
        "LoRA, ZeRO-2",
        "LoRA, ZeRO-3, recomputed",
        "LoRA, ZeRO-1, bf16",
    ],
)
def test_the_export_loads_as_an_ordinary_folder_and_has_learned(
    changes: dict[str, Any], tmp_path: Path
) -> None:
    job = gang.Job(tmp_path / "volume", changes=SHORT | changes)
    ended = job.run()
    assert ended.codes == [0, 0], ended.output
    export, base = job.folder / "export", job.volume / "models" / "tiny"
    assert differs(loaded(export), loaded(base))
    assert "tokenizer.json" in {path.name for path in export.iterdir()}
    assert json.loads((export / "config.json").read_text())["use_cache"] is True
    result = ended.outcomes[0].train  # type: ignore[union-attr]
    assert result is not None
    assert result.export_directory == "jobs/job/export"
    assert result.export_bytes == sum(path.stat().st_size for path in export.rglob("*") if path.is_file())


def test_a_lora_run_that_was_resumed_exports_the_very_same_weights(tmp_path: Path) -> None:
    whole = gang.Job(tmp_path / "whole", changes=SHORT | LORA)
    resumed = gang.Job(tmp_path / "resumed", changes=SHORT | LORA)
    whole.run()
    resumed.run()
    newest = next((resumed.folder / "checkpoints" / "step-4").rglob("*model_states.pt"))
    newest.unlink()
    again = resumed.run(attempt=2)
    assert again.outcomes[0].resumed_from_step == 2  # type: ignore[union-attr]
    assert resumed.curve() == whole.curve()
    names = ("export/model.safetensors",) * 1
    for name in names:
        one, other = load_file(whole.folder / name), load_file(resumed.folder / name)
        assert all(torch.equal(one[key], other[key]) for key in one)


def test_only_rank_0_copies_a_model_that_every_rank_holds() -> None:
    module = torch.nn.Linear(2, 3)
    engine = SimpleNamespace(module=module, zero_optimization_stage=lambda: 2)
    first, other = (
        exports.gathered(engine, SimpleNamespace(is_first=first), partial=False) for first in (True, False)
    )  # type: ignore[arg-type]
    assert first is not None
    assert first.keys() == {"weight", "bias"}
    assert other is None


def test_a_tensor_under_two_names_is_copied_to_the_host_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.Tensor, "cpu", lambda tensor: tensor.clone())  # as from an accelerator
    embedding, other = torch.randn(5, 3), torch.randn(5, 3)
    state = exports.on_host({"embed": embedding, "head": embedding.detach(), "other": other})
    assert state["embed"] is state["head"]
    assert state["embed"] is not embedding
    assert torch.equal(state["other"], other)


@pytest.mark.parametrize(
    ("method", "form", "expected"),
    [
        ("Full", "Merged", 110 * 2),
        ("LoRA", "Merged", 100 * 2),
        ("LoRA", "Adapter", 10 * 4),
        ("LoRA", "Both", 100 * 2 + 10 * 4),
    ],
)
def test_room_is_asked_for_what_will_be_written(method: str, form: str, expected: int) -> None:
    module = torch.nn.ParameterList([torch.zeros(100), torch.zeros(10)])
    module[0].requires_grad_(False)
    config = SimpleNamespace(training=SimpleNamespace(method=method), export=SimpleNamespace(format=form))
    parts = SimpleNamespace(engine=SimpleNamespace(module=module), config=config)
    state = dict(module.named_parameters())
    assert exports.written_bytes(parts, state, torch.bfloat16) == expected  # type: ignore[arg-type]


def test_a_run_that_was_replaced_leaves_the_export_of_its_successor_alone(tmp_path: Path) -> None:
    old, new = (Fence(uid="u", attempt=n, started="t", run_id=f"run{n}") for n in (1, 2))
    folder = JobFolder(tmp_path)
    fence.claim(folder.fence, new)
    (tmp_path / ".export-run2").mkdir()
    parts = SimpleNamespace(store=Store(folder, old, 1))
    with pytest.raises(Fenced):
        exports._write(parts, tmp_path, {}, np.arange(5), torch.zeros(5))  # type: ignore[arg-type]
    assert (tmp_path / ".export-run2").is_dir()


def check(folder: Path, expected: torch.Tensor) -> None:
    config = SimpleNamespace(training=SimpleNamespace(adapts=False), export=SimpleNamespace(format="Merged"))
    parts = SimpleNamespace(config=config, precision="fp32")
    exports._check(folder, folder, parts, np.arange(5), expected, torch.float32)  # type: ignore[arg-type]


def test_an_export_that_is_not_the_trained_model_ends_the_job_for_good(tmp_path: Path) -> None:
    folder = tiny.model(tmp_path / "model")
    right = exports._probe(loaded(folder), np.arange(5), torch.device("cpu"))
    check(folder, right)
    with pytest.raises(UserError, match="does not answer as the trained one") as caught:
        check(folder, right + 1)
    assert (caught.value.reason, caught.value.exit_code) == ("ExportCheckFailed", ExitCode.USER_ERROR)
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"][3] = torch.nan
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"tensor model\.norm\.weight is empty or not finite"):
        check(folder, right)


def test_both_gives_the_merged_model_and_the_adapters_beside_it(tmp_path: Path) -> None:
    import peft

    job = gang.Job(tmp_path / "volume", ranks=1, changes=SHORT | LORA | {"export__format": "Both"})
    assert job.run().codes == [0]
    export = job.folder / "export"
    adapted = peft.PeftModel.from_pretrained(loaded(job.volume / "models" / "tiny"), export / "adapter")
    ids = torch.arange(20)[None]
    with torch.no_grad():
        torch.testing.assert_close(
            adapted(input_ids=ids).logits, loaded(export)(input_ids=ids).logits, atol=1e-4, rtol=1e-4
        )


def test_adapters_alone_find_their_base_model_from_where_they_lie(tmp_path: Path) -> None:
    job = gang.Job(tmp_path / "volume", ranks=1, changes=SHORT | LORA | {"export__format": "Adapter"})
    assert job.run().codes == [0]
    settings = json.loads((job.folder / "export" / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == "../../../models/tiny"
    assert not (job.folder / "export" / "model.safetensors").exists()
    ((_, answer),) = chat.answers(job.folder / "export", ["hi"], 5)

    of_hub = layout.hub_copy(job.volume, "some/model", COMMIT)
    of_hub.parent.mkdir(parents=True)
    (job.volume / "models" / "tiny").rename(of_hub)
    change(
        job.folder / "export" / "adapter_config.json", base_model_name_or_path="some/model", revision=COMMIT
    )
    assert list(chat.answers(job.folder / "export", ["hi"], 5)) == [("hi", answer)]


def test_adapters_of_a_hub_model_name_it_as_everyone_can_load_it(tmp_path: Path) -> None:
    job = gang.Job(tmp_path / "volume", ranks=1, changes=SHORT | LORA | {"export__format": "Both"})
    assert job.run(model__resolved=f"hf://some/model@{COMMIT}").codes == [0]
    settings = json.loads((job.folder / "export" / "adapter" / "adapter_config.json").read_text())
    assert (settings["base_model_name_or_path"], settings["revision"]) == ("some/model", COMMIT)


def test_the_chat_template_that_was_trained_with_is_the_one_exported(tmp_path: Path) -> None:
    job = gang.Job(tmp_path / "volume", ranks=1, changes=SHORT)
    (job.volume / "own.jinja").write_text("{{ messages[0]['content'] }}!")
    ended = job.run(model__chatTemplate={"path": "own.jinja"})
    assert ended.codes == [0], ended.output
    tokenizer = transformers.AutoTokenizer.from_pretrained(job.folder / "export")
    text = tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)
    assert text == "hi!"


@pytest.mark.parametrize("before", [{"eos_token_id": 65}, None], ids=["generation config", "none"])
def test_a_base_model_that_learns_chatml_stops_at_the_end_of_its_turn(before: Any, tmp_path: Path) -> None:
    job = gang.Job(tmp_path / "volume", ranks=1, changes=SHORT)
    base = job.volume / "models" / "tiny"
    change(base / "config.json", eos_token_id=65)
    change(base / "tokenizer_config.json", eos_token="b", chat_template=None)
    (base / "generation_config.json").unlink()
    if before:
        (base / "generation_config.json").write_text(json.dumps(before))
    ended = job.run(model__chatTemplate={"preset": "ChatML"})
    assert ended.codes == [0], ended.output
    tokenizer = transformers.AutoTokenizer.from_pretrained(job.folder / "export")
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert tokenizer.eos_token == "<|im_end|>"
    assert loaded(job.folder / "export").generation_config.eos_token_id == [end, 65]


TEMPLATES = [
    ("{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}", "<|im_end|>"),
    ("{% for m in messages %}{{ m.content }} <|im_end|>\n{% endfor %}{{ eos_token }}", "<|im_end|>"),
    ("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}", None),
    ("{{ messages[0].content }}<|im_end|>", None),
    ("{{ raise_exception('only tools') }}", None),
]


@pytest.mark.parametrize(("template", "expected"), TEMPLATES)
def test_the_end_of_a_turn_is_read_off_the_template(
    template: str, expected: str | None, tmp_path: Path
) -> None:
    found = companions.end_of_turn(
        ChatTemplate(template, {"eos_token": "b"}), Tokenizer(tiny.model(tmp_path))
    )
    assert (found.text if found else None) == expected


def test_a_template_that_speaks_of_eos_token_keeps_its_meaning(tmp_path: Path) -> None:
    base, staging = tiny.model(tmp_path / "volume" / "tiny"), tmp_path / "staging"
    staging.mkdir()
    change(base / "tokenizer_config.json", eos_token="b")
    (tmp_path / "volume" / "own.jinja").write_text(TEMPLATES[1][0])
    config = SimpleNamespace(model=SimpleNamespace(chat_template=ChatTemplateSource(path="own.jinja")))
    companions.copy(base, staging, config, tmp_path / "volume")  # type: ignore[arg-type]
    assert json.loads((staging / "tokenizer_config.json").read_text())["eos_token"] == "b"
    assert json.loads((staging / "generation_config.json").read_text())["eos_token_id"] == [257]


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
