"""What a chat template writes behind an answer: the end-of-turn that the model has to learn.

Asked of the template itself, with an answer in the middle of a conversation and one at its end, because one
row does not tell: many templates close the whole conversation with a text of their own (Phi 3.5:
`<|end|>`, a line break, `<|endoftext|>`), and only what stands behind every answer is what the model has to generate.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Collection
from itertools import takewhile
from typing import NamedTuple

from sft_trainer.data.template import ChatTemplate, TemplateError

_ANSWERS = ("xqSFTJOBFIRSTANSWERqx", "xqSFTJOBLASTANSWERqx")
_QUESTION = "xqSFTJOBQUESTIONqx"


class Ending(NamedTuple):
    """The text behind an answer that stands anywhere (`every`), and behind the last of a conversation."""

    every: str
    last: str
    stops: bool
    """Whether `every` holds a special token: a model stops generating at a token, not at a text."""


@functools.lru_cache(maxsize=8)
def ending(template: ChatTemplate) -> Ending | None:
    """The ending that `template` gives to answers; None if it refuses or rewrites the simplest dialogue."""
    user = {"role": "user", "content": _QUESTION}
    first, last = ({"role": "assistant", "content": answer} for answer in _ANSWERS)
    try:
        text = template.render([user, first, user, last]).text
    except TemplateError:
        return None
    if any(text.count(answer) != 1 for answer in _ANSWERS):
        return None
    middle, _, end = text.partition(_ANSWERS[0])[2].partition(_ANSWERS[1])
    return between(middle, end, template.tokens, template.eos)


def between(middle: str, end: str, tokens: Collection[str], eos: str = "") -> Ending:
    """The ending, from what follows an answer in the middle and what follows the last one.

    Their common beginning, up to its last whole special token: what comes behind may belong to the next turn. If `eos` is
    one of them, up to that: the model has stopped there (Command R7B begins another turn behind every answer).
    """
    same = takewhile(lambda pair: pair[0] == pair[1], zip(middle, end, strict=False))
    shared = "".join(character for character, _ in same)
    found = re.finditer("|".join(map(re.escape, sorted(tokens, key=len, reverse=True))), shared)
    cut = 0
    for match in found if tokens else ():
        cut = match.end()
        if match[0] == eos:
            break
    last = end.rstrip()
    if cut:
        return Ending(shared[:cut], last, stops=True)
    return Ending(last if middle.startswith(last) else "", last, stops=False)
