"""How many bytes of a text every token stands for, where a tokenizer neither loses nor adds any.

Byte-level BPE (GPT-2, Llama 3, Qwen, Phi 4, DeepSeek, …) spells a text's bytes out. Then the places of all tokens are a
running sum over their sizes, which costs nothing beside the offsets that the tokenizer would keep for each of them.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import numpy.typing as npt
import tokenizers

Sizes = npt.NDArray[np.int32]
_NEVER = 2**30  # no sum with this is the size of a text


def token_sizes(tokenizer: tokenizers.Tokenizer) -> Sizes | None:
    """Bytes by token id; None where no row's can be certain.

    A row's are if their sum is the size of its text. It is less where a byte has no token, or where an added token takes
    blanks along; never more, for nothing is added but the unknown token, whose size fits no text. (NFC, the only
    normalizer that is allowed, may do both: the text must be in that form.)
    """
    if not (_is_plain(tokenizer) and _spells_bytes(tokenizer)):
        return None
    known = {token: len(text) for text, token in tokenizer.get_vocab(with_added_tokens=False).items()}
    for token, added in tokenizer.get_added_tokens_decoder().items():
        known[token] = len(added.content.encode())
    sizes = np.zeros(max(known) + 1, np.int32)
    sizes[list(known)] = list(known.values())
    if tokenizer.model.unk_token is not None:
        sizes[tokenizer.token_to_id(tokenizer.model.unk_token)] = _NEVER
    return sizes


def _is_plain(tokenizer: tokenizers.Tokenizer) -> bool:
    """BPE without marks at the edges of words, behind no normalizer but NFC."""
    model, normalizer = tokenizer.model, tokenizer.normalizer
    if not isinstance(model, tokenizers.models.BPE) or model.dropout:
        return False
    if model.continuing_subword_prefix or model.end_of_word_suffix:
        return False
    return normalizer is None or isinstance(normalizer, tokenizers.normalizers.NFC)


def _spells_bytes(tokenizer: tokenizers.Tokenizer) -> bool:
    """Whether what is cut into words keeps every character and adds none."""
    if tokenizer.pre_tokenizer is None:
        return False
    state = json.loads(tokenizer.pre_tokenizer.__getstate__())
    steps: list[dict[str, Any]] = state["pretokenizers"] if state["type"] == "Sequence" else [state]
    kept = {"Split": ("behavior", "Removed"), "ByteLevel": ("add_prefix_space", True), "Digits": ("", None)}
    for step in steps:
        if step["type"] not in kept:
            return False
        name, loss = kept[step["type"]]
        if name and step[name] == loss:
            return False
    return [step["type"] for step in steps].count("ByteLevel") == 1
