"""Parsers of what others wrote: damaged documents end in the one error that is meant for them."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fuzzing.documents import DOCUMENTS
from fuzzing.jsonlike import NUMBERS, WORDS
from fuzzing.parsers import PARSERS

FEW, MANY = 60, 20_000
HOSTILE = (b"", b'{"a":' * 100_000, b"9" * 10_000, b"[" * 300, b"- " * 2000)
DEEP = b"[" * 100_000
ENTRY = b'{"files": [{"path": "%s", "size": 3, "sha256": "0", "sample": "0"}]}'
ALIASES = b"\n".join(
    b"a%d: &a%d [%s]" % (number, number, b"*a%d," % (number - 1) * 8) for number in range(1, 40)
)
FOUND = [
    ("train config", DEEP),
    ("train config", b"9" * 5000),
    ("train config", re.sub(rb'("(sequence|tensor)ParallelSize": )1', rb"\g<1>0", DOCUMENTS["train config"])),
    ("prepare config", DEEP),
    ("events", DEEP),
    ("events", b'{"kind": "begun", "uid": "u", "attempt": 1e999, "time": 1}'),
    ("curves", DEEP),
    ("facts", b"9" * 5000),
    ("manifest", ENTRY % b"a\\u0000b"),
    ("manifest", ENTRY % (b"x" * 5000)),
    ("yaml", b"a0: &a0 [x]\n" + ALIASES),
]
SPLICES = (
    b"\x00", b"\xff\xfe", b"\xef\xbb\xbf", b"\n", b"\r", b"\xe2\x80\xa8", b"\\ud800", b"1e999", b"-1", b"NaN", b"Infinity", b"9" * 5000,
    b"null", b"[]", b"{}", b'""', b"true", b"&a [*a]", b"!!python/object:os.system x", b"<<: {}", b"---\n", b"..", b"/",
    b"[" * 300, b'{"a":' * 5000,
)  # fmt: skip
VALUES: Any = st.recursive(
    st.sampled_from([*WORDS, *NUMBERS, None, True]) | st.text(max_size=20),
    lambda below: (
        st.lists(below, max_size=4) | st.dictionaries(st.sampled_from([*WORDS, "role"]), below, max_size=4)
    ),
    max_leaves=8,
)


@st.composite
def damaged(draw: Any, document: bytes) -> bytes:
    """The document with a few bytes replaced, cut or spliced in."""
    data = document
    for _ in range(draw(st.integers(0, 3))):
        start = draw(st.integers(0, len(data)))
        end = min(len(data), start + draw(st.sampled_from([0, 1, 2, 5, 30, 10**6])))
        middle = draw(st.sampled_from(SPLICES) | st.binary(max_size=8) | st.just(data[start:end] * 2))
        data = data[:start] + middle + data[end:]
    return data


@st.composite
def exchanged(draw: Any, document: bytes) -> bytes:
    """The JSON document (or its lines) with a value replaced by any other."""
    lines = document.split(b"\n") if document.count(b"\n{") else [document]
    number = draw(st.integers(0, len(lines) - 1))
    try:
        parsed = json.loads(lines[number])
    except ValueError:
        return document
    places = list(_places(parsed))
    holder, key = draw(st.sampled_from(places)) if places else (None, None)
    if holder is not None:
        holder[key] = draw(VALUES)
    lines[number] = json.dumps(parsed).encode()
    return b"\n".join(lines)


def _places(value: Any) -> Any:
    if isinstance(value, dict | list):
        for key in list(value) if isinstance(value, dict) else range(len(value)):
            yield value, key
            yield from _places(value[key])


def check(name: str, examples: int) -> None:
    parse, document = PARSERS[name], DOCUMENTS[name]

    @settings(max_examples=examples, deadline=None, database=None)
    @given(st.one_of(damaged(document), exchanged(document), st.binary(max_size=40)))
    def survives(data: bytes) -> None:
        parse(data)

    survives()


@pytest.mark.parametrize("name", PARSERS)
def test_the_undamaged_document_is_read(name: str):
    assert PARSERS[name](DOCUMENTS[name])


@pytest.mark.parametrize("name", PARSERS)
def test_damaged_documents_end_in_the_error_that_is_meant_for_them(name: str):
    for hostile in HOSTILE:
        PARSERS[name](hostile)
    check(name, FEW)


@pytest.mark.parametrize(("name", "data"), FOUND, ids=lambda value: value if isinstance(value, str) else "")
def test_what_has_been_found_once_stays_mended(name: str, data: bytes):
    PARSERS[name](data)


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", PARSERS)
def test_many_damaged_documents(name: str):
    check(name, MANY)
