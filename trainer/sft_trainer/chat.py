"""`python -m sft_trainer chat`: asks a model folder questions, for looking at what a training has changed.

Greedy, through the chat template that lies in the folder, so that the same model gives the same answer.
Answers go to stdout, one JSON object per line with --json: another program compares them before and after.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from sft_trainer import foreign, layout
from sft_trainer.errors import TrainerError, UserError, classify

logger = logging.getLogger(__name__)


def main(arguments: Sequence[str] | None = None) -> int:
    """Answer every question in the order given; returns the exit code."""
    options = _parser().parse_args(arguments)
    try:
        questions = [*options.question, *_questions(options.questions_file)]
        if not questions:
            raise UserError("InvalidArguments", "no question: give --question or --questions-file")
        for question, answer in answers(options.model, questions, options.max_new_tokens):
            sys.stdout.write(_line(question, answer, options.json))
            sys.stdout.flush()
    except (TrainerError, OSError) as error:
        failure = classify(error)
        sys.stderr.write(f"{failure.message}\n")
        return int(failure.exit_code)
    return 0


def answers(model: Path, questions: Sequence[str], max_new_tokens: int) -> Iterator[tuple[str, str]]:
    """Each question with the model's answer; every question starts a conversation of its own.

    A folder that holds only LoRA adapters is loaded on top of the base model it names.
    """
    import torch

    tokenizer, network = _load(model)
    for question in questions:
        tokens = tokenizer.apply_chat_template(
            [{"role": "user", "content": question}],
            add_generation_prompt=True,
            return_tensors="pt",
            return_dict=True,
        ).to(network.device)
        with torch.inference_mode():
            output = network.generate(**tokens, **_greedy(tokenizer, max_new_tokens))
        new = output[0, tokens["input_ids"].shape[1] :]
        yield question, tokenizer.decode(new, skip_special_tokens=True).strip()


def talker(model: Path) -> Callable[[list[dict[str, str]], int], Iterator[str]]:
    """Loads a model folder; what comes back answers conversations, in pieces as they are made.

    Greedy, as everywhere here. Generation runs in a thread, for its streamer is a callback and ours an iterator.
    """
    import torch
    from transformers import TextIteratorStreamer

    tokenizer, network = _load(model)

    def talk(messages: list[dict[str, str]], max_new_tokens: int) -> Iterator[str]:
        tokens = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
        ).to(network.device)
        streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
        errors: list[BaseException] = []

        def generate() -> None:
            try:
                with torch.inference_mode():
                    network.generate(**tokens, streamer=streamer, **_greedy(tokenizer, max_new_tokens))
            except Exception as error:  # whatever it is: the reader must not wait for ever
                errors.append(error)
                streamer.end()

        thread = threading.Thread(target=generate, daemon=True)
        thread.start()
        yield from (piece for piece in streamer if piece)
        thread.join()
        if errors:
            raise RuntimeError(f"the model cannot answer: {errors[0]}") from errors[0]

    return talk


def _greedy(tokenizer: Any, max_new_tokens: int) -> dict[str, Any]:
    pad = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    sampling = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    return {"max_new_tokens": max_new_tokens, "pad_token_id": pad, **sampling}


def _load(model: Path) -> tuple[Any, Any]:
    """Tokenizer and network of a Hugging Face folder; a UserError says what the folder lacks."""
    adapter = (model / "adapter_config.json").is_file()
    if not adapter and not (model / "config.json").is_file():
        raise UserError("InvalidModel", f"{model} holds no config.json: --model takes a Hugging Face folder")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(model, **foreign.NO_CODE)
    if tokenizer.chat_template is None:
        raise UserError("InvalidModel", f"{model} has no chat template")
    dtype = torch.bfloat16 if torch.cuda.is_available() else torch.float32
    if adapter:
        from peft import PeftModel

        base, revision = _base_of(model)
        network = AutoModelForCausalLM.from_pretrained(
            base, revision=revision, dtype=dtype, **foreign.NO_CODE_NO_PICKLES
        )
        network = PeftModel.from_pretrained(network, model)
        if (model / "generation_config.json").is_file():
            network.generation_config = GenerationConfig.from_pretrained(model)
    else:
        network = AutoModelForCausalLM.from_pretrained(model, dtype=dtype, **foreign.NO_CODE_NO_PICKLES)
    return tokenizer, network.to("cuda" if torch.cuda.is_available() else "cpu").eval()


def _base_of(adapter: Path) -> tuple[str | Path, str | None]:
    """The base model of an adapter, and its revision if it has to come from the hub.

    A folder named relative to the adapter's; or a model of the hub, of which the workspace around the adapter
    holds the copy that was trained with.
    """
    settings = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    name, revision = settings["base_model_name_or_path"], settings.get("revision")
    places = [adapter.resolve() / name]
    places += [layout.hub_copy(folder, name, revision or "") for folder in adapter.resolve().parents]
    found = next((place for place in places if (place / "config.json").is_file()), None)
    return (found, None) if found else (name, revision)


def _questions(file: Path | None) -> list[str]:
    """One question per line; empty lines and `#` comments are left out."""
    if file is None:
        return []
    lines = (line.strip() for line in file.read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def _line(question: str, answer: str, as_json: bool) -> str:
    if as_json:
        return json.dumps({"question": question, "answer": answer}, ensure_ascii=False) + "\n"
    return f"> {question}\n{answer}\n\n"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m sft_trainer chat", description="Ask a model folder.")
    parser.add_argument(
        "--model", type=Path, required=True, help="Hugging Face folder, e.g. jobs/NAME/export"
    )
    parser.add_argument("--question", action="append", default=[], help="may be given several times")
    parser.add_argument("--questions-file", type=Path, help="one question per line, # comments")
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--json", action="store_true", help="one JSON object per line")
    return parser
