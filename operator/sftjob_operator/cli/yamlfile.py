"""One YAML file as the JSON that kubectl would send of it, or a sentence with the line and the field.

Numbers are those of YAML 1.2: `2e-5` is one. What kubectl reads otherwise than it looks (`yes` as true, `010` as 8) is
refused by name: a job must not mean one thing here and another in a cluster.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.constructor import DuplicateKeyError
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from sftjob_operator.cli.errors import CliError

Place = tuple[str | int, ...]
"""Keys and indexes from the top of the document."""

_DEPTH = 64
_BYTES = 3 << 20  # more than the API server takes
_VALUES = 100_000  # with those that aliases repeat
_INT64 = range(-(2**63), 2**63)
_BOOLEANS = {"true": ("y", "yes", "on"), "false": ("n", "no", "off")}


class _Wrong(Exception):
    def __init__(self, place: Place, words: str) -> None:
        super().__init__(words)
        self.place = place


@dataclass(frozen=True)
class Document:
    """What one file says."""

    path: Path
    value: Any
    """JSON."""
    source: Any
    """The same from ruamel, which knows lines."""

    def at(self, place: Place) -> str:
        """File and line of a field; of what holds it where it came in through a merge key."""
        node, line = self.source, None
        with contextlib.suppress(LookupError, TypeError, AttributeError):
            for part in place:
                known = node.lc.item if isinstance(part, int) else node.lc.key
                with contextlib.suppress(LookupError, TypeError):
                    line = int(known(part)[0]) + 1
                node = node[part]
        return str(self.path) if line is None else f"{self.path} line {line}"


def field(place: Place) -> str:
    """spec.data.train[0].path"""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place)
    return text.removeprefix(".") or "the document"


def read(path: Path) -> Document:
    """The only document of the file; CliError for everything that is wrong with it as YAML."""
    try:
        documents = _documents(path)
    except RecursionError:
        raise CliError(f"{path}: nested too deeply: an SFTJob has no more than {_DEPTH} levels") from None
    if not documents:
        raise CliError(f"{path}: the file is empty; an SFTJob is needed")
    if len(documents) > 1:
        raise CliError(f"{path}: {len(documents)} documents; give one SFTJob per file")
    source = documents[0]
    try:
        return Document(path, _json(source, (), count(1)), source)
    except _Wrong as error:
        where = Document(path, None, source).at(error.place)
        raise CliError(f"{where}: {field(error.place)}: {error}") from None


def _documents(path: Path) -> Sequence[Any]:
    yaml = YAML()  # the round-trip loader is the one that knows lines
    yaml.preserve_quotes = True
    try:
        if (size := path.stat().st_size) > _BYTES:
            raise CliError(
                f"{path} has {size >> 20:,} MiB: an SFTJob has less than {_BYTES >> 20}; is it the right file?"
            )
        return [item for item in yaml.load_all(path.read_text(encoding="utf-8")) if item is not None]
    except FileNotFoundError:
        raise CliError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise CliError(f"{path} cannot be read: {error}") from None
    except DuplicateKeyError as error:
        raise CliError(f"{_mark(path, error)}: {str(error.problem).partition(' with')[0]}") from None
    except MarkedYAMLError as error:
        raise CliError(f"{_mark(path, error)}: not YAML: {error.problem or error.context}") from None
    except (YAMLError, ValueError) as error:  # ValueError: a date that does not exist
        raise CliError(f"{path}: not YAML: {error}") from None


def _mark(path: Path, error: MarkedYAMLError) -> str:
    return str(path) if error.problem_mark is None else f"{path} line {error.problem_mark.line + 1}"


def _json(value: Any, place: Place, counted: Iterator[int]) -> Any:
    if next(counted) > _VALUES:
        raise _Wrong(place[:3], f"with what its aliases repeat, the file has more than {_VALUES:,} values")
    if len(place) > _DEPTH:
        raise _Wrong(place[:3], f"nested too deeply: an SFTJob has no more than {_DEPTH} levels")
    if isinstance(value, Mapping):
        return dict(_items(value, place, counted))
    if isinstance(value, list):
        return [_json(item, (*place, index), counted) for index, item in enumerate(value)]
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return _integer(value, place)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise _Wrong(place, "not a finite number: write one, or leave the field out")
        return float(value)
    if isinstance(value, str):
        return _text(value, place)
    raise _Wrong(place, "a date, or a value with a YAML tag: put it in quotes")


def _items(value: Mapping[Any, Any], place: Place, counted: Iterator[int]) -> Iterator[tuple[str, Any]]:
    for key, item in value.items():
        if not isinstance(key, str):
            shown = "null" if key is None else str(key).lower() if isinstance(key, bool) else key
            raise _Wrong(place, f"the key {shown} is not text: put it in quotes")
        yield _text(key, (*place, key)), _json(item, (*place, key), counted)


def _integer(value: int, place: Place) -> int:
    if getattr(value, "_width", None) not in (None, len(str(abs(value)))):
        raise _Wrong(
            place, "a number with a leading zero is octal for kubectl: write it without, or in quotes"
        )
    number = int(value)  # a range tells quickly of plain integers only
    if number not in _INT64:
        raise _Wrong(place, "more than an integer of 64 bits holds: write a smaller number")
    return number


def _text(value: str, place: Place) -> str:
    """Quoted text and blocks are subclasses of str."""
    if type(value) is str:
        for meaning, words in _BOOLEANS.items():
            if value.lower() in words and value in (value.lower(), value.capitalize(), value.upper()):
                raise _Wrong(
                    place, f"{value} means {meaning} to kubectl: put it in quotes, or write {meaning}"
                )
    return str(value)
