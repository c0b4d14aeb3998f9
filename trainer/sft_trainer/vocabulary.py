"""A model folder with more tokens: `model.addTokens`, made once in preparation, so that nobody else need know.

The extended folder is an ordinary model: tokenizer, config and embeddings agree, every rank loads it as it loads any
other, and exports and adapters have it as their base. Only the files that hold the vocabulary's tensors are written
again, a piece at a time; the others are linked. New rows are the mean of the old ones
(https://nlp.stanford.edu/~johnhew/vocab-expansion.html): the model then finds a new token about as likely as an average
one, where random rows can outweigh all it knows.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers

from sft_trainer import layout, rows, uses, weights
from sft_trainer.config import TokenRange
from sft_trainer.data import cache
from sft_trainer.errors import UserError

logger = logging.getLogger(__name__)

_LARGE = 1 << 20  # bytes
_WRITTEN = ("config.json", "tokenizer.json", "tokenizer_config.json", "added_tokens.json")


@dataclass(frozen=True)
class Extended:
    """The folder to train, a digest of what was added to the model's own (empty: nothing), and the new numbers."""

    directory: Path
    digest: str = ""
    tokens: TokenRange | None = None

    @property
    def suffix(self) -> str:
        """What tells the model from its own base, behind its name."""
        return f"+{self.digest}" if self.digest else ""


def extend(directory: Path, wanted: Sequence[str], workspace: Path) -> Extended:
    """The model in `directory` with the tokens `wanted`, each one token wherever it stands.

    Raises:
        UserError: it has no tokenizer.json, or its embeddings cannot be extended.
    """
    tokenizer, tokens = _with_tokens(directory, wanted)
    if tokenizer is None:
        return Extended(directory)
    content = tokenizer.to_str(pretty=True)
    parts = (weights.fingerprint(directory), content, f"{tokens}")
    digest = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
    entry = layout.model_cache(workspace) / f"tokens-{digest}"
    with cache.alone(entry):
        if not (uses.touch(entry) and (entry / "config.json").is_file()):
            with cache.staging(entry) as staged:
                _write(directory, staged, content, list(wanted), tokens)
                cache.publish(staged, entry)
    return Extended(entry, digest, tokens)


def _with_tokens(
    directory: Path, wanted: Sequence[str]
) -> tuple[tokenizers.Tokenizer | None, TokenRange | None]:
    """The tokenizer with `wanted` and the numbers that are new; (None, None) where it had them all as they are."""
    path = directory / "tokenizer.json"
    if not path.is_file():
        raise UserError(
            "TokenizerMissing",
            f"model.addTokens: the model {layout.shown(directory)} has no tokenizer.json to add to; "
            "load it with transformers' AutoTokenizer and save_pretrained it into the folder",
        )
    tokenizer = tokenizers.Tokenizer.from_file(str(path))
    before = {token.content: token.special for token in tokenizer.get_added_tokens_decoder().values()}
    taken = set(tokenizer.get_vocab(with_added_tokens=True).values())
    for token in wanted:
        if token in before:
            logger.info("model.addTokens: %s is a token of this model already", token)
        elif tokenizer.token_to_id(token) is not None:
            logger.info("model.addTokens: %s is in the vocabulary already; now it is never split", token)
    tokenizer.add_special_tokens(
        [tokenizers.AddedToken(token, special=True, normalized=False) for token in wanted]
    )
    if all(before.get(token) for token in wanted):
        return None, None
    new = sorted({int(tokenizer.token_to_id(token) or 0) for token in wanted} - taken)
    if not new:
        return tokenizer, None
    if new[-1] - new[0] + 1 != len(new):
        raise UserError(
            "AddedTokensUnsupported",
            "model.addTokens: this tokenizer has gaps in its numbers, so that new tokens would not follow one "
            "another; remove model.addTokens",
        )
    return tokenizer, TokenRange(first=new[0], count=len(new))


def _write(
    directory: Path, staged: Path, tokenizer: str, wanted: list[str], tokens: TokenRange | None
) -> None:
    written = _write_weights(directory, staged, tokens) if tokens else set()
    for path in sorted(directory.iterdir()):
        if path.is_file() and path.name not in written and path.name not in _WRITTEN:
            _link(path, staged / path.name)
    (staged / "tokenizer.json").write_text(tokenizer, encoding="utf-8")
    settings = _json(directory / "tokenizer_config.json")
    if "added_tokens_decoder" in settings:  # of transformers 4, which believes it more than tokenizer.json
        every = {str(entry["id"]): entry for entry in json.loads(tokenizer)["added_tokens"]}
        settings["added_tokens_decoder"] |= {
            number: {k: v for k, v in entry.items() if k != "id"}
            for number, entry in every.items()
            if entry["content"] in wanted
        }
    _dump(staged / "tokenizer_config.json", settings)
    for path in staged.iterdir():
        if path.stat().st_nlink == 1:  # a linked file keeps its owner's rights
            path.chmod(0o644)
        cache.sync(path)
    _dump(staged / "config.json", _config(directory, tokens))  # last: with it the folder is whole
    cache.sync(staged / "config.json")


def _write_weights(directory: Path, staged: Path, tokens: TokenRange) -> set[str]:
    """Write the files that hold tensors with a row per token; their names."""
    size = _vocabulary(_json(directory / "config.json"))
    written, grown = set(), 0
    for path in weights.files(directory):
        names = weights.of_the_vocabulary(path, size)
        if names:
            grown += rows.extend(path, staged / path.name, names, tokens.first, tokens.count)
            written.add(path.name)
    if not written:
        raise UserError(
            "AddedTokensUnsupported",
            f"model.addTokens: no tensor of {layout.shown(directory)} is known as an embedding with "
            f"{size} rows; extend the model with transformers' resize_token_embeddings and save it as a folder",
        )
    index = _json(directory / weights.INDEX)
    if index:
        total = index.get("metadata", {}).get("total_size")
        if isinstance(total, int):
            index["metadata"]["total_size"] = total + grown
        _dump(staged / weights.INDEX, index)
        written.add(weights.INDEX)
    logger.info("added %d tokens, numbers %d to %d", tokens.count, tokens.first, tokens.end - 1)
    return written


def _config(directory: Path, tokens: TokenRange | None) -> dict[str, Any]:
    """config.json; many models have more rows than tokens, and those are used up before there are more."""
    document = _json(directory / "config.json")
    text = document.get("text_config") or document
    if tokens is not None:
        text["vocab_size"] = max(_vocabulary(document), tokens.end)
    return document


def _vocabulary(document: dict[str, Any]) -> int:
    return int((document.get("text_config") or document)["vocab_size"])


def _link(path: Path, target: Path) -> None:
    """A second name for a large file where the volume allows it; what is small may be changed by its owner."""
    if path.suffix == ".safetensors" or path.stat().st_size > _LARGE:
        try:
            os.link(path.resolve(), target)
            return
        except OSError:
            pass
    shutil.copyfile(path, target)


def _json(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}


def _dump(path: Path, document: dict[str, Any]) -> None:
    path.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
