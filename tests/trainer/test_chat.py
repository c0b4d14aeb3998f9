"""Asking a model folder, and the entry point that leads there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sft_trainer import __main__ as entry
from sft_trainer import chat
from sft_trainer.volume import Desk

TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of a few thousand random weights, with a word tokenizer and a chat template."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = ["<unk>", "<eos>", "<user>", "<assistant>", "where", "is", "paris", "in", "france"]
    tokenizer = Tokenizer(models.WordLevel({word: n for n, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="<eos>")
    fast.chat_template = TEMPLATE
    torch.manual_seed(1)
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    network = LlamaForCausalLM(LlamaConfig(vocab_size=len(words), **small, bos_token_id=None, eos_token_id=1))
    folder = tmp_path_factory.mktemp("model")
    network.save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


@pytest.mark.processes  # loading transformers takes longer than all fast tests together
def test_every_question_gets_the_same_answer_each_time(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    questions = model / "questions.txt"
    questions.write_text("# from a file\n\nparis in france\n")
    options = ["--model", str(model), "--question", "where is paris", "--questions-file", str(questions)]
    answers = []
    for _ in range(2):
        assert chat.main([*options, "--max-new-tokens", "5", "--json"]) == 0
        answers.append([json.loads(line) for line in capsys.readouterr().out.splitlines()])
    assert answers[0] == answers[1]
    assert [answer["question"] for answer in answers[0]] == ["where is paris", "paris in france"]
    assert all(len(answer["answer"].split()) <= 5 for answer in answers[0])


@pytest.mark.processes
def test_a_conversation_comes_in_pieces_and_is_the_same_answer(model: Path) -> None:
    ((_, whole),) = chat.answers(model, ["where is paris"], 5)
    desk = Desk(model.parent)
    messages = [{"role": "user", "content": "where is paris"}]
    request = {"do": "ask", "model": model.name, "messages": messages, "maxNewTokens": 5}
    *pieces, end = desk.answers(json.dumps(request))
    assert "".join(each["piece"] for each in pieces).strip() == whole
    assert end == {"end": True}
    (answer,) = desk.answers(json.dumps({**request, "model": "nothing"}))
    assert "holds no config.json" in answer["error"]


@pytest.mark.processes
def test_answers_are_readable_without_json(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert chat.main(["--model", str(model), "--question", "where", "--max-new-tokens", "2"]) == 0
    assert capsys.readouterr().out.startswith("> where\n")


def test_a_folder_without_a_model_is_refused_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert chat.main(["--model", str(tmp_path), "--question", "hi"]) == 71
    assert "holds no config.json" in capsys.readouterr().err


def test_no_question_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert chat.main(["--model", str(tmp_path)]) == 71
    assert "give --question or --questions-file" in capsys.readouterr().err


def test_an_unknown_command_shows_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert entry.main(["dance"]) == entry.main([]) == 2
    assert "{prepare,launch,train,chat,samples,report,inspect,volume}" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["prepare", "launch"])
def test_an_entry_point_without_its_environment_is_a_user_error(command: str) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SFTJOB_")}
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-m", "sft_trainer", command],
        env={**environment, "PYTHONPATH": "trainer"},
        cwd=root,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 71, done.stderr
    assert "Traceback" not in done.stderr
