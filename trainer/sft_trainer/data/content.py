"""What is decided by a row's content alone, so that it does not change when other rows come or go.

The side of the split on which it is, how often it is seen where a source has a weight, and which rows are doubles.
"""

from __future__ import annotations

import hashlib
import json

from sft_trainer.data.formats import Conversation

_RANGE = 2**64


def fingerprint(conversation: Conversation) -> bytes:
    """32 bytes of the words of a conversation and who says them."""
    words = [(message.role, message.content) for message in conversation.messages]
    return hashlib.sha256(repr(words).encode("utf-8", "surrogatepass")).digest()


def identity(conversation: Conversation, words: bytes) -> bytes:
    """16 bytes of the whole normal form: of its words, and of its tools, calls and weights where it has any."""
    more = [conversation.tools, *((message.extra, message.weight) for message in conversation.messages)]
    if conversation.tools is None and all(m.extra is None and m.weight == 1 for m in conversation.messages):
        return words[:16]
    return hashlib.sha256(words + json.dumps(more, sort_keys=True, default=str).encode()).digest()[:16]


def rank(words: bytes) -> int:
    """Below 2**64; rows with the lowest are held out, and equal rows are on the same side."""
    return int.from_bytes(words[:8], "big")


def is_held_out(words: bytes, percent: int) -> bool:
    """Whether the row belongs to the `percent` of all possible rows that are for evaluation."""
    return rank(words) * 100 < percent * _RANGE


def repeats(words: bytes, weight: float) -> int:
    """How often the row is seen in an epoch: the whole part of `weight`, and once more by chance of its fraction."""
    whole = int(weight)
    return whole + (int.from_bytes(words[8:16], "big") < (weight - whole) * _RANGE)
