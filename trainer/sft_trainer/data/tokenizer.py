"""A model folder's tokenizer and chat template, read without transformers.

`tokenizer.json` holds everything a fast tokenizer does; the special tokens' names and the template lie
beside it. What is missing is an error that says which file and what to do, before any GPU is taken.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import tokenizers

from sft_trainer import foreign, layout
from sft_trainer.config import ChatTemplate as TemplateSource
from sft_trainer.data.bytewise import Sizes, token_sizes
from sft_trainer.data.template import ChatTemplate, TemplateError
from sft_trainer.errors import UserError

_END_OF_TURN = "<|im_end|>"
CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '" + _END_OF_TURN + "' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
_LARGEST = 256 * foreign.MEBIBYTE
_HIGHEST = 10_000_000
_OTHER_KINDS = ("tokenizer.model", "vocab.json", "vocab.txt", "tiktoken.model", "tekken.json")


class Tokenizer:
    """The fast tokenizer of a model folder."""

    def __init__(self, directory: Path) -> None:
        """Load it; UserError TokenizerMissing if the folder has none."""
        path = directory / "tokenizer.json"
        if not path.is_file():
            raise UserError("TokenizerMissing", _missing(directory))
        self.content = foreign.content(path, "TokenizerMissing", _LARGEST)
        self._path = path
        with self._named():
            self._tokenizer = tokenizers.Tokenizer.from_buffer(self.content)
        highest = max(self._tokenizer.get_vocab().values(), default=0)
        if highest > _HIGHEST:  # tables of tokens are as long as the highest number
            raise UserError(
                "TokenizerMissing",
                f"{layout.shown(path)} cannot be used: a token has the number {highest}; copy it from the model again",
            )
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.special_tokens = _special_tokens(directory)

    def encode(self, texts: list[str]) -> list[tokenizers.Encoding]:
        """Tokens of rendered texts: nothing is added, the template has already named every special token."""
        with self._named():
            return self._tokenizer.encode_batch(texts, add_special_tokens=False)

    def ids(self, texts: list[str]) -> list[list[int]]:
        """The same tokens without their places, which takes less time."""
        with self._named():
            return [one.ids for one in self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)]

    @contextmanager
    def _named(self) -> Iterator[None]:
        """UserError with the file for what the library says of it: a bare Exception, or a panic, which is not even that."""
        try:
            yield
        except BaseException as exc:
            if type(exc).__name__ != "PanicException" and not isinstance(exc, Exception):
                raise
            raise UserError(
                "TokenizerMissing",
                f"{layout.shown(self._path)} cannot be used: {str(exc)[:300]}; copy it from the model again",
            ) from exc

    @cached_property
    def sizes(self) -> Sizes | None:
        """Bytes of every token, for texts in normal form C; None if they are not certain."""
        return token_sizes(self._tokenizer)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`, special tokens included."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=False))

    @property
    def added_tokens(self) -> list[str]:
        """Texts that are one token wherever they stand; runs of white space, which some have, left out."""
        added = self._tokenizer.get_added_tokens_decoder().values()
        return [token.content for token in added if token.content.strip()]

    def knows(self, token: str) -> bool:
        """Whether `token` is a single entry of the vocabulary."""
        return self._tokenizer.token_to_id(token) is not None


def chat_template(
    directory: Path, tokenizer: Tokenizer, chosen: TemplateSource | None, workspace: Path
) -> ChatTemplate:
    """The template the job names, else the model's own; UserError NoChatTemplate if there is neither."""
    source, origin = template_source(directory, tokenizer, chosen, workspace)
    try:
        return ChatTemplate(source, tokenizer.special_tokens, tokenizer.added_tokens)
    except TemplateError as exc:
        raise UserError("InvalidChatTemplate", f"{origin} is not a valid template: {exc}") from exc


def template_source(
    directory: Path, tokenizer: Tokenizer, chosen: TemplateSource | None, workspace: Path
) -> tuple[str, str]:
    """The template's text, which an export writes into its folder, and where it is from, in words."""
    if chosen is not None and chosen.path is not None:
        return _file(chosen.path, workspace), f"model.chatTemplate.path {chosen.path}"
    if chosen is not None and chosen.preset is not None:
        return preset(tokenizer), f"model.chatTemplate.preset {chosen.preset}"
    own = _own_template(directory)
    if own is None:
        raise UserError(
            "NoChatTemplate",
            f"the model {layout.shown(directory)} has no chat template; "
            "set model.chatTemplate.preset: ChatML, or model.chatTemplate.path to a jinja file",
        )
    return own, f"the chat template of {layout.shown(directory)}"


def preset(tokenizer: Tokenizer) -> str:
    """ChatML. Where `<|im_end|>` is not one token, turns end with the model's own end-of-text token.

    A model stops generating at a token, not at a text: it must learn one that exists.
    """
    end = tokenizer.special_tokens.get("eos_token")
    if end is None or tokenizer.knows(_END_OF_TURN):
        return CHATML
    return CHATML.replace(f"'{_END_OF_TURN}'", "eos_token")


def _own_template(directory: Path) -> str | None:
    file = directory / "chat_template.jinja"
    if file.is_file():
        return foreign.text(file, "InvalidChatTemplate")
    for name in ("tokenizer_config.json", "chat_template.json"):
        found = _json(directory / name).get("chat_template")
        if isinstance(found, list):  # several named ones
            entries = [entry for entry in found if isinstance(entry, dict)]
            named = {str(entry.get("name")): entry.get("template") for entry in entries}
            found = named.get("default") or next(iter(named.values()), None)
        if isinstance(found, str) and found:
            return found
    return None


def _file(path: str, workspace: Path) -> str:
    try:
        return foreign.text(layout.within(workspace, path), "InvalidChatTemplate")
    except (ValueError, OSError) as exc:
        words = (
            "was not found in the workspace"
            if isinstance(exc, FileNotFoundError)
            else f"cannot be read: {exc}"
        )
        raise UserError("ChatTemplateNotFound", f"model.chatTemplate.path: {path} {words}") from exc


def _special_tokens(directory: Path) -> dict[str, str]:
    """bos_token, eos_token and the like, by the names that templates use."""
    found: dict[str, str] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        for key, value in _json(directory / name).items():
            content = value.get("content") if isinstance(value, dict) else value
            if key.endswith("_token") and isinstance(content, str):
                found[key] = content
    return found


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    document = foreign.document(path, "TokenizerMissing")
    return document if isinstance(document, dict) else {}


def _missing(directory: Path) -> str:
    other = [name for name in _OTHER_KINDS if (directory / name).is_file()]
    if other:
        return (
            f"the model {layout.shown(directory)} has {', '.join(other)} but no tokenizer.json; "
            "load it with transformers' AutoTokenizer and save_pretrained it into the folder"
        )
    return (
        f"the model {layout.shown(directory)} has no tokenizer (tokenizer.json); copy tokenizer.json and "
        "tokenizer_config.json of the model into its folder"
    )
