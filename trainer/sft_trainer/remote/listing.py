"""What a URI of a store means: the objects it names, under names that are safe on the workspace."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import NamedTuple

from sft_trainer.errors import UserError

MOST_FILES = 10_000
MOST_LISTED = 200_000  # objects looked at for one URI
_MAGIC = re.compile(r"[*?\[]")


class Remote(NamedTuple):
    """One object: `name` in our copy, `key` in the store, its size in bytes and what identifies its content."""

    name: str
    key: str
    size: int
    etag: str


@dataclass(frozen=True)
class Listing:
    """The objects of `uri`, which stands in `field` of the SFTJob; `read(object, start, end)` gives bytes."""

    uri: str
    field: str
    objects: tuple[Remote, ...]
    read: Callable[[Remote, int, int], bytes]

    @property
    def size(self) -> int:
        """Bytes of all objects."""
        return sum(one.size for one in self.objects)


class Wanted(NamedTuple):
    """What to list for a key, folder or glob: `prefix` ends with a slash or is empty."""

    prefix: str
    pattern: re.Pattern[str] | None  # of names below the prefix; None = all

    def of(self, objects: Iterable[Remote]) -> Iterator[Remote]:
        """Those that are wanted, with their names below the prefix. Markers of folders are none."""
        for one in objects:
            name = one.key.removeprefix(self.prefix)
            if name and not name.endswith("/") and (self.pattern is None or self.pattern.fullmatch(name)):
                yield one._replace(name=name)


def has_magic(key: str) -> bool:
    """Whether `key` is a glob."""
    return _MAGIC.search(key) is not None


def folder(key: str) -> Wanted:
    """Everything below `key`."""
    return Wanted(f"{key.rstrip('/')}/" if key.strip("/") else "", None)


def matching(key: str) -> Wanted:
    """What the glob `key` matches: `*` and `?` stay within a folder, `**/` goes through any number of them."""
    found = _MAGIC.search(key)
    prefix = key[: key.rfind("/", 0, found.start() if found else None) + 1]
    return Wanted(prefix, re.compile(_expression(key[len(prefix) :])))


def checked(field: str, uri: str, objects: Iterable[Remote]) -> tuple[Remote, ...]:
    """The objects in the order of their names; UserError for too many, or for names that are unsafe as files."""
    found: dict[str, Remote] = {}
    for one in objects:
        _refuse_unsafe(field, uri, one.name)
        found[one.name] = one
        if len(found) > MOST_FILES:
            raise UserError(
                "SourceTooLarge",
                f"{field}: {uri} names more than {MOST_FILES:,} files: name fewer, or pack them together",
            )
    for name in found:
        above = next((str(p) for p in PurePosixPath(name).parents if str(p) in found), None)
        if above is not None:
            raise UserError(
                "UnsafeName",
                f"{field}: {uri} has both {above} and {name}, a file and a folder of one name: rename one",
            )
    return tuple(found[name] for name in sorted(found))


def bounded(field: str, uri: str, objects: Iterable[Remote]) -> Iterator[Remote]:
    """The same objects, until there are too many to look at."""
    for number, one in enumerate(objects):
        if number >= MOST_LISTED:
            raise UserError(
                "SourceTooLarge",
                f"{field}: {uri}: more than {MOST_LISTED:,} objects would have to be looked at: name a folder further down",
            )
        yield one


def _refuse_unsafe(field: str, uri: str, name: str) -> None:
    parts = name.split("/")
    if any(part in ("", ".", "..") or len(part.encode()) > 240 for part in parts) or re.search(
        r"[\0-\x1f\\]", name
    ):
        raise UserError(
            "UnsafeName",
            f"{field}: {uri}: the object {name[:200]!r} has a name that no file can safely have: rename it",
        )


def _expression(glob: str) -> str:
    out, at = [], 0
    while at < len(glob):
        if glob.startswith("**/", at):
            out.append("(?:.*/)?")
            at += 3
        elif glob[at] == "*":
            out.append("[^/]*")
            at += 1
        elif glob[at] == "?":
            out.append("[^/]")
            at += 1
        elif glob[at] == "[" and (end := glob.find("]", at + 2)) > 0:
            inside = glob[at + 1 : end].replace("\\", "\\\\")
            out.append(f"(?!/)[{'^' + inside[1:] if inside[0] in '!^' else inside}]")
            at = end + 1
        else:
            out.append(re.escape(glob[at]))
            at += 1
    return "".join(out)
