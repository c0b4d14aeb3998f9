"""What lies beside the weights of an export: tokenizer, chat template, and where the model stops.

Copied from the base folder. Where the job replaces the chat template, turns may end with another token than
the base's: the export has to name that one, or the trained model never stops talking.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any, NamedTuple

from sft_trainer import hub
from sft_trainer.config import TrainConfig
from sft_trainer.data.template import ChatTemplate, TemplateError
from sft_trainer.data.tokenizer import Tokenizer, chat_template

_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".onnx", ".index.json")
_OURS = ("config.json", "adapter_config.json", "README.md", ".gitattributes")
_ANSWER = "xqANSWERqx"


class Token(NamedTuple):
    """One entry of the vocabulary."""

    number: int
    text: str


def copy(base: Path, staging: Path, config: TrainConfig, volume: Path) -> None:
    """Everything of the base folder that is neither weights nor written by us, and the job's own template."""
    for path in sorted(base.iterdir()):
        ours = path.name in _OURS or path.name.endswith(_WEIGHTS)
        if path.is_file() and not ours:
            shutil.copyfile(path, staging / path.name)
    if config.model.chat_template is None:
        return
    tokenizer = Tokenizer(base)
    template = chat_template(base, tokenizer, config.model.chat_template, volume)
    (staging / "chat_template.jinja").write_text(template.source, encoding="utf-8")
    end = end_of_turn(template, tokenizer)
    if end is not None:
        _stop_at(end, base, staging, rename=not template.uses("eos_token"))


def base_of_adapter(config: TrainConfig, adapter: Path, volume: Path) -> tuple[str, str | None]:
    """How the adapter in folder `adapter` names its base: (name, revision).

    A model of the hub by its id, which everyone can load; any other by the way from the adapter to it.
    """
    resolved = config.model.resolved or ""
    if resolved.startswith(hub.SCHEME) and "+" not in resolved:  # with added tokens it is not the hub's
        return hub.parse(resolved)
    return os.path.relpath(volume / config.model.directory, adapter), None


def end_of_turn(template: ChatTemplate, tokenizer: Tokenizer) -> Token | None:
    """The token of its own that follows an answer; None where the template ends turns in another way."""
    turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": _ANSWER}]
    try:
        _, answer, rest = template.render(turns).text.rpartition(_ANSWER)
    except TemplateError:
        return None
    added = [Token(entry["id"], entry["content"]) for entry in json.loads(tokenizer.content)["added_tokens"]]
    ends = [token for token in added if answer and rest.lstrip().startswith(token.text)]
    return max(ends, key=lambda token: len(token.text), default=None)


def _stop_at(end: Token, base: Path, staging: Path, *, rename: bool) -> None:
    """Make `end` one of the tokens at which generation stops; `rename`: and the tokenizer's eos_token.

    A template that speaks of eos_token would render something else than was trained, so it is not renamed
    there.
    """
    path = staging / "generation_config.json"
    settings = _json(path) or {"eos_token_id": _json(base / "config.json").get("eos_token_id")}
    known = settings.get("eos_token_id")
    others = known if isinstance(known, list) else [known]
    _write(
        path, {**settings, "eos_token_id": [end.number, *(n for n in others if n not in (None, end.number))]}
    )
    for name in ("tokenizer_config.json", "special_tokens_map.json") if rename else ():
        path = staging / name
        if path.is_file():
            _write(path, {**_json(path), "eos_token": end.text})


def _json(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}


def _write(path: Path, settings: dict[str, Any]) -> None:
    path.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
